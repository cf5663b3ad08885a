"""Columns of numbers in files: features, labels and keys in; tables out. Any fsspec URI.

`.npy` holds features (two dimensions) or labels (one); `.npz` and `.parquet` hold either or both,
and keys.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, cast

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_FEATURE_NAMES = ("features", "feature", "embeddings", "embedding", "x", "X")
_LABEL_NAMES = ("labels", "label", "y")
_KEY_NAMES = ("keys", "key", "node_id")


@dataclass(frozen=True)
class Columns:
    """What a file holds, row by row; None where it has no such column.

    Attributes:
        features: (n, D) float32.
        labels: (n,) int64, -1 = unlabeled.
        keys: (n,) names of the rows.
    """

    features: np.ndarray | None
    labels: np.ndarray | None
    keys: np.ndarray | None


def read_columns(uri: str) -> Columns:
    """Read features, labels and keys from one file, whichever of them it has.

    Raises:
        ValueError: The format is not known or the arrays are not what is needed.
        FileNotFoundError: There is no such file.
    """
    ending = PurePosixPath(uri).suffix.lower()
    if ending not in {".npy", ".npz", ".parquet"}:
        raise ValueError(f"{uri}: cannot read {ending or 'this'} files; use .npy, .npz or .parquet")
    with fsspec.open(uri, "rb") as file:
        content = io.BytesIO(file.read())
    try:
        columns = _parquet(content) if ending == ".parquet" else _numpy(content)
    except (ValueError, OSError, EOFError, pa.ArrowException) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{uri}: not a readable {ending} file: {reason[0]}") from None
    return _checked(columns, uri)


def join_labels(columns: Columns, labels: Columns, uri: str) -> Columns:
    """Take the labels of a second file: by key where both have keys, by row otherwise.

    Raises:
        ValueError: The second file has no labels, or keys or lengths do not fit.
    """
    if labels.labels is None:
        raise ValueError(f"{uri}: no labels in it; name the column 'label'")
    if columns.keys is not None and labels.keys is not None:
        return replace(columns, labels=_labels_by_key(columns.keys, labels, uri))
    assert columns.features is not None
    if len(labels.labels) != len(columns.features):
        raise ValueError(
            f"{uri}: {len(labels.labels)} labels for {len(columns.features)} rows of features; "
            "give one per row (-1 = unlabeled), or a 'key' column in both files"
        )
    return replace(columns, labels=labels.labels)


def write_table(table: pa.Table, uri: str) -> None:
    """Write Parquet at any fsspec URI; the folder is made where it is missing."""
    filesystem, path = fsspec.core.url_to_fs(uri)
    filesystem.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
    with filesystem.open(path, "wb") as file:
        pq.write_table(table, file)


def _numpy(content: io.BytesIO) -> Columns:
    loaded: Any = np.load(content, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        if loaded.ndim == 1:
            return Columns(None, loaded, None)
        return Columns(loaded, None, None)
    return _named({name: loaded[name] for name in loaded.files})


def _parquet(content: io.BytesIO) -> Columns:
    table = pq.read_table(content)
    wanted = [n for n in table.column_names if n in _FEATURE_NAMES + _LABEL_NAMES + _KEY_NAMES]
    arrays: dict[str, np.ndarray] = {}
    for name in wanted:
        column = table.column(name).combine_chunks()
        if isinstance(column.type, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
            if len(pc.unique(pc.list_value_length(column))) > 1 or column.null_count:
                raise ValueError(f"the rows of {name!r} are not all of one length")
            flat = column.flatten().to_numpy(zero_copy_only=False)
            arrays[name] = flat.reshape(len(column), -1)
        else:
            arrays[name] = column.to_numpy(zero_copy_only=False)
    return _named(arrays)


def _named(arrays: dict[str, np.ndarray]) -> Columns:
    def first(names: Iterable[str]) -> np.ndarray | None:
        return next((arrays[name] for name in names if name in arrays), None)

    features = first(_FEATURE_NAMES)
    if features is None:
        wide = [value for value in arrays.values() if value.ndim == 2]
        features = wide[0] if len(wide) == 1 else None
    return Columns(features, first(_LABEL_NAMES), first(_KEY_NAMES))


def _checked(columns: Columns, uri: str) -> Columns:
    features, labels = columns.features, columns.labels
    if features is not None:
        if features.ndim != 2 or features.dtype.kind not in "fiu":
            raise ValueError(
                f"{uri}: features of shape {features.shape} and type {features.dtype}; "
                "give numbers of shape (rows, width)"
            )
        features = features.astype(np.float32)
    if labels is not None:
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{uri}: labels of shape {labels.shape} and type {labels.dtype}; "
                "give one whole number per row, -1 = unlabeled"
            )
        labels = labels.astype(np.int64)
    return Columns(features, labels, columns.keys)


def _labels_by_key(keys: np.ndarray, labels: Columns, uri: str) -> np.ndarray:
    theirs = cast(np.ndarray, labels.keys).astype(str)
    order = np.argsort(theirs, kind="stable")
    ours = keys.astype(str)
    sorted_ours = np.argsort(ours, kind="stable")
    at = np.searchsorted(ours[sorted_ours], theirs[order])
    at = np.minimum(at, len(ours) - 1)
    unknown = ours[sorted_ours][at] != theirs[order]
    if unknown.any():
        raise ValueError(
            f"{uri}: {int(unknown.sum())} keys have no features, the first is "
            f"{str(theirs[order][unknown][0])!r}"
        )
    out = np.full(len(ours), -1, np.int64)
    out[sorted_ours[at]] = cast(np.ndarray, labels.labels)[order]
    return out
