"""What a manifest may say: a data set comes from strangers, and its numbers are read as places.

Beyond these checks a manifest can be wrong (a place that holds another sample, a label that is no
class), which `manifest.check` and decoding find out; it cannot lead a reader out of the data set or
make it take memory that the data set does not fill.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from .limits import check_limit
from .names import check_keys
from .schema import Kind

_FARTHEST = 1 << 62
_TEXTS = frozenset({"key", "shard", "split", "sha256"})


def check_columns(uri: str, table: pa.Table) -> None:
    """Check the types of a manifest's columns, those that may be absent among them.

    Raises:
        ValueError: Numbers instead of texts or the other way round, or nothing at all in a row.
    """
    for name in table.column_names:
        column = table[name]
        kind, is_text = column.type, name in _TEXTS
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind
        fits = _is_text(kind) if is_text else pa.types.is_integer(kind)
        # A foreign manifest may know no sums; they are read where they are asked for.
        if not fits or (column.null_count and name != "sha256"):
            expected = "texts" if is_text else "whole numbers"
            raise ValueError(
                f"{uri}: column {name!r} of manifest.parquet has type {column.type} and "
                f"{column.null_count} empty rows; expected {expected} in every row"
            )


def check_places(
    uri: str,
    kind: Kind,
    keys: pa.Array,
    shards: tuple[str, ...],
    shard_ids: np.ndarray,
    offsets: np.ndarray,
    sizes: np.ndarray,
) -> None:
    """Check where a manifest says that the samples lie; see `manifest.SampleIndex`.

    Raises:
        ValueError: Keys that are paths to elsewhere, places below zero or beyond all
            files, samples of too many bytes, or images that overlap: then few bytes in a file would
            become many in memory.
    """
    check_keys(keys, f"{uri}: manifest.parquet")
    if not len(offsets):
        return
    wrong = np.flatnonzero((offsets < 0) | (sizes < 0) | (offsets > _FARTHEST))
    if len(wrong):
        raise ValueError(
            f"{uri}: sample {keys[wrong[0]].as_py()!r} should have {sizes[wrong[0]]} bytes at "
            f"{offsets[wrong[0]]}; no file has such a place"
        )
    largest = int(sizes.argmax())
    check_limit("SAMPLE_BYTES", int(sizes[largest]), f"{uri}: sample {keys[largest].as_py()!r}")
    if kind != "image":
        return
    ends = np.zeros(len(shards), np.int64)
    np.maximum.at(ends, shard_ids, offsets + sizes)
    claimed = np.bincount(shard_ids, weights=sizes, minlength=len(shards))
    over = np.flatnonzero(claimed > ends)
    if len(over):
        raise ValueError(
            f"{uri}: the samples of {shards[over[0]]} have {int(claimed[over[0]])} bytes together, "
            f"but lie within {ends[over[0]]}; samples must not overlap"
        )


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))
