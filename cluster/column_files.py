"""Formats of columns: `.npy`, `.npz`, `.csv`, `.parquet` and folders of Parquet, at any fsspec URI.

`.npy` holds features (two dimensions) or labels (one); all others any of features, labels and keys
by name, `.csv` no features. Labels are whole numbers, -1 = unlabeled, or names, of which "", "-1"
and nothing at all mean unlabeled.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from ..datasets.arrays import read_arrays
from ..datasets.files import locate
from ..datasets.limits import TooLargeError, check_parquet
from .feature_rows import ArrayRows, FeatureRows, ParquetRows, list_matrix

_FEATURE_NAMES = ("features", "feature", "embeddings", "embedding", "x", "X")
_LABEL_NAMES = ("labels", "label", "y")
_KEY_NAMES = ("keys", "key", "node_id")
_ENDINGS = (".npy", ".npz", ".csv", ".parquet")


@dataclass(frozen=True)
class OpenColumns:
    """What a file holds, row by row; None where it has no such column.

    Attributes:
        features: (n, D) numbers, not read yet where they lie in Parquet or in an array on disk.
        labels: (n,) int64, -1 = unlabeled.
        keys: (n,) names of the rows.
        classes: Names of the classes 0, 1, ..., where labels are names.
        rows: (n,) numbers of the rows that the labels are for, in a file of labels alone.
    """

    features: FeatureRows | None = None
    labels: NDArray[np.int64] | None = None
    keys: NDArray[Any] | None = None
    classes: NDArray[Any] | None = None
    rows: NDArray[np.int64] | None = None


def open_columns(uri: str) -> OpenColumns:
    """Find features, labels and keys in a file or a folder, whichever of them it has.

    Raises:
        ValueError: The format is not known, or the columns are not what is needed.
        FileNotFoundError: There is no such file.
    """
    filesystem, path = locate(uri)
    is_folder = bool(filesystem.isdir(path))
    ending = ".parquet" if is_folder else PurePosixPath(path).suffix.lower()
    if ending not in _ENDINGS:
        raise ValueError(
            f"{uri}: cannot read {ending or 'this'} files; use {', '.join(_ENDINGS)} or a folder "
            "of .parquet files"
        )
    paths = sorted(filesystem.glob(f"{path.rstrip('/')}/*.parquet")) if is_folder else [path]
    if not paths:
        raise ValueError(f"{uri}: no .parquet files in this folder")
    try:
        if ending == ".parquet":
            columns = _open_parquet(filesystem, paths)
        elif ending == ".csv":
            columns = _read_csv(filesystem, path)
        else:
            columns = _open_numpy(filesystem, path)
    except TooLargeError:
        raise
    except (ValueError, EOFError, BadZipFile, pa.ArrowException) as error:
        raise ValueError(f"{uri}: not a readable {ending} file: {_reason(error)}") from None
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{uri}: not a readable {ending} file: {_reason(error)}") from None
    return _checked(columns, uri)


@dataclass(frozen=True)
class _Raw:
    """Columns as they lie in the file."""

    features: FeatureRows | None
    labels: NDArray[Any] | None = None
    keys: NDArray[Any] | None = None
    rows: NDArray[Any] | None = None


def _open_numpy(filesystem: Any, path: str) -> _Raw:
    if isinstance(filesystem, LocalFileSystem) and path.endswith(".npy"):
        # Copy-on-write: torch wants memory that may be written to, and nothing writes to it.
        loaded: Any = np.load(path, mmap_mode="c", allow_pickle=False)
    else:
        loaded = read_arrays(filesystem.cat_file(path), path)
    if isinstance(loaded, np.ndarray):
        is_labels = loaded.ndim == 1
        return _Raw(None, np.array(loaded)) if is_labels else _Raw(_array_rows(loaded))
    features = _first(loaded, _FEATURE_NAMES)
    if features is None:
        wide = [value for value in loaded.values() if value.ndim == 2]
        features = wide[0] if len(wide) == 1 else None
    return _Raw(
        None if features is None else _array_rows(features),
        _first(loaded, _LABEL_NAMES),
        _first(loaded, _KEY_NAMES),
        loaded.get("row"),
    )


def _array_rows(array: NDArray[Any]) -> ArrayRows:
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise ValueError(
            f"features of shape {array.shape} and type {array.dtype}; give numbers of shape "
            "(rows, width)"
        )
    return ArrayRows(array)


def _open_parquet(filesystem: Any, paths: Sequence[str]) -> _Raw:
    schemas, num_rows = [], 0
    for path in paths:
        with filesystem.open(path, "rb") as file:
            parquet = pq.ParquetFile(file)
            check_parquet(parquet, filesystem.size(path), None, path)
            schemas.append(parquet.schema_arrow)
            num_rows += parquet.metadata.num_rows
    names = schemas[0].names
    missing = [p for p, s in zip(paths, schemas) if set(s.names) != set(names)]
    if missing:
        raise ValueError(f"{missing[0]} has other columns than {paths[0]}")
    narrow = [n for n in names if n in (*_LABEL_NAMES, *_KEY_NAMES, "row")]
    tables = [_read_narrow(filesystem, path, narrow) for path in paths] if narrow else []
    arrays = {n: np.concatenate([table[n] for table in tables]) for n in narrow}
    return _Raw(
        _parquet_rows(filesystem, paths, schemas[0], num_rows),
        _first(arrays, _LABEL_NAMES),
        _first(arrays, _KEY_NAMES),
        arrays.get("row"),
    )


def _parquet_rows(
    filesystem: Any, paths: Sequence[str], schema: pa.Schema, num_rows: int
) -> ParquetRows | None:
    lists = [n for n in schema.names if _is_list(schema.field(n).type)]
    named = [n for n in _FEATURE_NAMES if n in schema.names]
    column = named[0] if named else lists[0] if len(lists) == 1 else None
    if column is None:
        return None
    if column not in lists:
        raise ValueError(f"{column!r} has type {schema.field(column).type}; give lists of numbers")
    with filesystem.open(paths[0], "rb") as file:
        batches = pq.ParquetFile(file).iter_batches(1, columns=[column])
        first = next((list_matrix(batch.column(0), column) for batch in batches), None)
    if first is None:
        raise ValueError(f"{paths[0]} has no rows")
    if first.dtype.kind not in "fiu":
        raise ValueError(f"{column!r} has lists of {first.dtype}; give numbers")
    return ParquetRows(filesystem, tuple(paths), column, (num_rows, first.shape[1]), first.dtype)


def _is_list(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.ListType | pa.LargeListType | pa.FixedSizeListType)


def _read_narrow(filesystem: Any, path: str, names: Sequence[str]) -> Mapping[str, NDArray[Any]]:
    with filesystem.open(path, "rb") as file:
        return _arrays(pq.ParquetFile(file).read(columns=list(names)))


def _read_csv(filesystem: Any, path: str) -> _Raw:
    table = pyarrow.csv.read_csv(io.BytesIO(filesystem.cat_file(path)))
    arrays = _arrays(table)
    return _Raw(None, _first(arrays, _LABEL_NAMES), _first(arrays, _KEY_NAMES), arrays.get("row"))


def _arrays(table: pa.Table) -> dict[str, NDArray[Any]]:
    """Columns as arrays; missing numbers are -1, missing names None."""
    arrays = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        if isinstance(column.type, pa.DictionaryType):
            column = column.dictionary_decode()
        if pa.types.is_integer(column.type):
            column = column.fill_null(-1)
        elif pa.types.is_null(column.type):
            column = pa.array([-1] * len(column))
        arrays[name] = column.to_numpy(zero_copy_only=False)
    return arrays


def _first(arrays: Mapping[str, NDArray[Any]], names: Iterable[str]) -> NDArray[Any] | None:
    return next((arrays[name] for name in names if name in arrays), None)


def _checked(raw: _Raw, uri: str) -> OpenColumns:
    labels = classes = None
    if raw.labels is not None:
        labels, classes = _encoded(raw.labels, uri)
    sizes = {
        name: size
        for name, size in (
            ("rows of features", None if raw.features is None else raw.features.shape[0]),
            ("labels", None if labels is None else len(labels)),
            ("keys", None if raw.keys is None else len(raw.keys)),
        )
        if size is not None
    }
    if len(set(sizes.values())) > 1:
        found = ", ".join(f"{size} {name}" for name, size in sizes.items())
        raise ValueError(f"{uri}: {found}; give one of each per row")
    rows = None if raw.rows is None else raw.rows.astype(np.int64)
    return OpenColumns(raw.features, labels, raw.keys, classes, rows)


def _encoded(labels: NDArray[Any], uri: str) -> tuple[NDArray[np.int64], NDArray[Any] | None]:
    """Class numbers, and the names of the classes where labels are names."""
    if labels.ndim == 1 and labels.dtype.kind in "iu":
        return labels.astype(np.int64), None
    if labels.ndim == 1 and labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8")
    if labels.ndim != 1 or labels.dtype.kind not in "UO":
        raise ValueError(
            f"{uri}: labels of shape {labels.shape} and type {labels.dtype}; give one whole "
            "number per row, -1 = unlabeled, or one name"
        )
    given = ["" if name is None else str(name) for name in labels.tolist()]
    is_known = np.array([name not in ("", "-1") for name in given], bool)
    classes, numbers = np.unique(np.array(given)[is_known], return_inverse=True)
    out = np.full(len(given), -1, np.int64)
    out[is_known] = numbers
    return out, classes


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
