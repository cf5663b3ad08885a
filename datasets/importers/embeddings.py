"""Embeddings: .npz, .npy or Parquet with features, and labels where they are known.

npz: `features` (or `X`), optional `labels` (or `y`), `keys`, `classes`. npy: features alone.
Parquet: a list column `features`, optional `label` (or `labels`) and `key`. -1 = unlabeled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ..arrays import read_arrays
from ..files import read_bytes, read_columns
from ..limits import TooLargeError
from ..schema import UNLABELED, DatasetInfo
from ..sources import class_names, name_of, require_source
from ..stratify import draw_share
from ..writer import DatasetWriter


def import_samples(
    source: str | None,
    dest: str,
    *,
    test_share: float = 0.0,
    seed: int = 0,
    name: str | None = None,
    classes: str | Sequence[str] | None = None,
) -> DatasetInfo:
    """Write the rows of one file.

    Args:
        test_share: Share of the rows with a label that become test samples, stratified.
        classes: Names of the classes.

    Raises:
        ValueError: Not such a file, features that are no finite matrix, or other labels.
    """
    source = require_source(source, "an .npz, .npy or .parquet file")
    features, labels, keys, named = _read(source)
    features = _matrix(features, source)
    labels = np.full(len(features), UNLABELED) if labels is None else np.asarray(labels)
    if labels.shape != (len(features),) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{source}: labels of shape {labels.shape} and type {labels.dtype}; expected "
            f"{len(features)} integers, -1 where unlabeled"
        )
    if labels.min(initial=0) < UNLABELED:
        raise ValueError(f"{source}: label {labels.min()}; allowed are classes from 0, and -1")
    if keys is not None and len(keys) != len(features):
        raise ValueError(f"{source}: {len(keys)} keys for {len(features)} rows")
    labels = labels.astype(np.int64)
    is_test = _draw_test(labels, test_share, seed)
    writer = DatasetWriter(dest, name=name_of(source, name), kind="embedding")
    for i, (row, label) in enumerate(zip(features, labels.tolist())):
        key = _text(keys[i]) if keys is not None else f"row-{i:07d}"
        truth = None if label == UNLABELED else label
        writer.add("test" if is_test[i] else "train", key, row, truth=truth)
    return writer.finish(class_names(classes or named, int(labels.max(initial=-1)) + 1))


def _read(source: str) -> tuple[Any, Any, Any, Any]:
    """Features, labels, keys, class names."""
    if source.endswith(".parquet"):
        return _read_parquet(source)
    try:
        arrays = read_arrays(read_bytes(source), source)
    except TooLargeError:
        raise
    except Exception as error:
        # A damaged file can raise anything: BadZipFile, zlib.error, TokenError of its header, ...
        raise ValueError(f"{source}: no readable .npz, .npy or .parquet file ({error})") from None
    if isinstance(arrays, np.ndarray):
        return arrays, None, None, None
    features = arrays.get("features", arrays.get("X"))
    if features is None:
        raise ValueError(f"{source}: has the arrays {sorted(arrays)}, but no `features` or `X`")
    names = [_text(n) for n in arrays["classes"]] if "classes" in arrays else None
    return features, arrays.get("labels", arrays.get("y")), arrays.get("keys"), names


def _read_parquet(source: str) -> tuple[Any, Any, Any, Any]:
    try:
        table = read_columns(source, None)
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{source}: not a readable Parquet file ({error})") from None
    present = table.column_names
    if "features" not in present:
        raise ValueError(f"{source}: has the columns {present}, but no `features`")
    lists = table["features"].combine_chunks()
    if lists.null_count:
        raise ValueError(f"{source}: row {lists.is_null().index(True).as_py()} has no features")
    labels = next(
        (table[c].fill_null(UNLABELED) for c in ("label", "labels") if c in present), None
    )
    return (
        _stack(lists, source),
        None if labels is None else labels.to_numpy(),
        table["key"].to_pylist() if "key" in present else None,
        None,
    )


def _stack(lists: Any, source: str) -> np.ndarray:
    is_list = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    if not any(test(lists.type) for test in is_list):
        raise ValueError(f"{source}: `features` has type {lists.type}; expected lists of numbers")
    lengths = sorted(pc.unique(pc.list_value_length(lists)).to_pylist())
    if len(lengths) != 1:
        raise ValueError(
            f"{source}: rows of `features` have the lengths {lengths[:10]}; expected one length"
        )
    flat: np.ndarray = lists.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(lists), lengths[0])


def _text(value: Any) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)


def _matrix(features: Any, source: str) -> np.ndarray:
    if features.ndim != 2 or not np.issubdtype(features.dtype, np.number):
        raise ValueError(
            f"{source}: features of shape {features.shape} and type {features.dtype}; expected "
            "numbers, one row per sample"
        )
    matrix = np.ascontiguousarray(features, np.float32)
    wrong = np.flatnonzero(~np.isfinite(matrix).all(1))
    if len(wrong):
        raise ValueError(f"{source}: row {wrong[0]} has NaN or infinite features")
    return matrix


def _draw_test(labels: np.ndarray, share: float, seed: int) -> np.ndarray:
    known = np.flatnonzero(labels != UNLABELED)
    is_test = np.zeros(len(labels), bool)
    is_test[known] = draw_share(torch.from_numpy(labels[known]), share, seed).numpy()
    return is_test
