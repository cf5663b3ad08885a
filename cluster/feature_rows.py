"""Rows of features in an array or in Parquet files, read block by block.

A memory-mapped array is never copied as a whole where it can be used as it lies on disk; everything
else becomes float32 one block at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

# Numbers of a block: 64 MiB in float32.
_BLOCK_NUMBERS = 1 << 24
_SHOWN = 5


@dataclass(frozen=True)
class ArrayRows:
    """(n, D) numbers in an array, which may be memory-mapped."""

    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, int]:
        return self.array.shape[0], self.array.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def blocks(self) -> Iterator[NDArray[Any]]:
        """All rows in order, some at a time, as stored."""
        step = max(1, _BLOCK_NUMBERS // max(1, self.shape[1]))
        for start in range(0, self.shape[0], step):
            yield self.array[start : start + step]


@dataclass(frozen=True)
class ParquetRows:
    """(n, D) numbers in a list column of Parquet files, one file after the other.

    Attributes:
        dtype: Of the first file.
    """

    filesystem: Any
    paths: Sequence[str]
    column: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]

    def blocks(self) -> Iterator[NDArray[Any]]:
        """All rows in order, some at a time, as stored."""
        step = max(1, _BLOCK_NUMBERS // max(1, self.shape[1]))
        for path in self.paths:
            with self.filesystem.open(path, "rb") as file:
                for batch in pq.ParquetFile(file).iter_batches(step, columns=[self.column]):
                    yield self._matrix(batch.column(0))

    def _matrix(self, lists: pa.Array) -> NDArray[Any]:
        matrix = list_matrix(lists, self.column)
        if len(matrix) and matrix.shape[1] != self.shape[1]:
            raise ValueError(f"the rows of {self.column!r} are not all of one length")
        return matrix


FeatureRows = ArrayRows | ParquetRows


def list_matrix(lists: pa.Array, name: str) -> NDArray[Any]:
    """Lists of one length as the rows of an array.

    Raises:
        ValueError: They are missing or of different lengths.
    """
    if lists.null_count or len(pc.unique(pc.list_value_length(lists))) > 1:
        raise ValueError(f"the rows of {name!r} are not all of one length")
    flat: NDArray[Any] = lists.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(lists), len(flat) // max(1, len(lists)))


def float_blocks(
    rows: FeatureRows, uri: str, keep: str = "float32"
) -> Iterator[tuple[int, NDArray[Any]]]:
    """Finite blocks in float32 and the number of their first row; `keep="float16"` leaves these.

    Raises:
        ValueError: NaN, or what is infinite in float32; the first such rows are named.
    """
    start = 0
    for block in rows.blocks():
        wanted = np.dtype(keep) if block.dtype == np.dtype(keep) else np.dtype(np.float32)
        with np.errstate(over="ignore"):
            part = np.ascontiguousarray(block, wanted)
        bad = np.flatnonzero(~np.isfinite(part).all(axis=1))
        if len(bad):
            more = " ..." if len(bad) > _SHOWN else ""
            shown = ", ".join(str(start + row) for row in bad[:_SHOWN].tolist())
            raise ValueError(
                f"{uri}: rows {shown}{more} contain NaN, or what is infinite in float32; remove "
                "or repair them"
            )
        yield start, part
        start += len(part)


def as_array(rows: FeatureRows, uri: str) -> NDArray[np.float32]:
    """All rows in float32: the array itself where it is that, so that a mapped file stays one."""
    is_ready = isinstance(rows, ArrayRows) and (
        rows.dtype == np.float32 and rows.dtype.isnative and rows.array.flags.c_contiguous
    )
    out: NDArray[np.float32]
    out = rows.array if isinstance(rows, ArrayRows) and is_ready else np.empty(rows.shape, "f4")
    for start, part in float_blocks(rows, uri):
        if not is_ready:
            out[start : start + len(part)] = part
    return out


def take_rows(rows: FeatureRows, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
    """These rows, `numbers` ascending, in float32."""
    if isinstance(rows, ArrayRows):
        return np.asarray(rows.array[numbers], np.float32)
    out, start = np.empty((len(numbers), rows.shape[1]), np.float32), 0
    for block in rows.blocks():
        first, last = np.searchsorted(numbers, [start, start + len(block)])
        out[first:last] = block[numbers[first:last] - start]
        start += len(block)
    return out
