"""Columns of numbers in files: features, labels and keys in; tables out. Any fsspec URI."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..datasets.files import locate
from .column_files import OpenColumns, open_columns
from .feature_rows import as_array

_SHOWN = 3


@dataclass(frozen=True)
class Columns:
    """What a file holds, row by row; None where it has no such column.

    Attributes:
        features: (n, D) float32; a mapped file where it lies on this machine in that form.
        labels: (n,) int64, -1 = unlabeled.
        keys: (n,) names of the rows.
        classes: Names of the classes 0, 1, ..., where labels are names.
        rows: (n,) numbers of the rows that the labels are for, in a file of labels alone.
    """

    features: NDArray[np.float32] | None = None
    labels: NDArray[np.int64] | None = None
    keys: NDArray[Any] | None = None
    classes: NDArray[Any] | None = None
    rows: NDArray[np.int64] | None = None


AnyColumns = TypeVar("AnyColumns", Columns, OpenColumns)


def read_columns(uri: str) -> Columns:
    """Read features, labels and keys from one file or folder, whichever of them it has.

    Raises:
        ValueError: The format is not known, or the arrays are not what is needed.
        FileNotFoundError: There is no such file.
    """
    found = open_columns(uri)
    features = None if found.features is None else as_array(found.features, uri)
    return Columns(features, found.labels, found.keys, found.classes, found.rows)


def join_labels(columns: AnyColumns, labels: Columns | OpenColumns, uri: str) -> AnyColumns:
    """Take the labels of a second file: by key where both have keys, by its column `row`, or one
    for every row.

    Raises:
        ValueError: The second file has no labels, or keys, rows or lengths do not fit.
    """
    if labels.labels is None:
        raise ValueError(f"{uri}: no labels in it; name the column 'label'")
    assert columns.features is not None
    num_rows = columns.features.shape[0]
    if columns.keys is not None and labels.keys is not None:
        found = _labels_by_key(columns.keys, labels.keys, labels.labels, uri)
    elif labels.rows is not None:
        found = _labels_by_row(num_rows, labels.rows, labels.labels, uri)
    elif len(labels.labels) != num_rows:
        raise ValueError(
            f"{uri}: {len(labels.labels)} labels for {num_rows} rows of features; give one per row "
            "(-1 = unlabeled), a column 'row', or a 'key' column in both files"
        )
    else:
        found = labels.labels
    return replace(columns, labels=found, classes=labels.classes)


def write_table(table: pa.Table, uri: str) -> None:
    """Write Parquet at any fsspec URI; the folder is made where it is missing."""
    filesystem, path = locate(uri)
    filesystem.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
    with filesystem.open(path, "wb") as file:
        pq.write_table(table, file)


def num_repeated(keys: NDArray[Any] | None) -> int:
    """Rows whose key an earlier row has, too; 0 without keys."""
    return 0 if keys is None else len(keys) - len(pa.array(keys).unique())


def _labels_by_key(
    keys: NDArray[Any], theirs: NDArray[Any], labels: NDArray[np.int64], uri: str
) -> NDArray[np.int64]:
    ours, wanted = keys.astype(str), theirs.astype(str)
    order = np.argsort(ours, kind="stable")
    ascending = ours[order]
    _refuse_twice(ascending, "the features")
    _refuse_twice(np.sort(wanted), uri)
    at = np.minimum(np.searchsorted(ascending, wanted), len(ours) - 1)
    unknown = ascending[at] != wanted
    if unknown.any():
        raise ValueError(
            f"{uri}: {int(unknown.sum())} keys have no features, the first is "
            f"{str(wanted[unknown][0])!r}"
        )
    out = np.full(len(ours), -1, np.int64)
    out[order[at]] = labels
    return out


def _labels_by_row(
    num_rows: int, rows: NDArray[np.int64], labels: NDArray[np.int64], uri: str
) -> NDArray[np.int64]:
    unknown = rows[(rows < 0) | (rows >= num_rows)]
    if len(unknown):
        raise ValueError(f"{uri}: row {unknown[0]} is not in 0..{num_rows - 1}, the features' rows")
    _refuse_twice(np.sort(rows), uri, what="row")
    out = np.full(num_rows, -1, np.int64)
    out[rows] = labels
    return out


def _refuse_twice(ascending: NDArray[Any], where: str, what: str = "key") -> None:
    twice = np.unique(ascending[1:][ascending[1:] == ascending[:-1]])
    if len(twice):
        shown = ", ".join(repr(value) for value in twice[:_SHOWN].tolist())
        raise ValueError(
            f"{where}: {len(twice)} {what}s come more than once ({shown}); keep one row of each"
        )
