"""How much a file may ask for before it is taken for an attack, or for a slip.

Files of strangers state how large they are; some state far more than they hold, or unpack to far
more than they weigh. Whatever is read goes past these limits first. They are wide: no data set of
images or embeddings that is what it says comes near. Who needs more sets LABELMESH_MAX_<NAME> where
the file is read, which a publisher of data cannot do.
"""

from __future__ import annotations

import os
from typing import Any, Literal

Name = Literal["SAMPLE_BYTES", "IMAGE_PIXELS", "SHARD_MEMBERS", "JSON_BYTES", "UNPACKED_BYTES"]

_DEFAULTS: dict[Name, tuple[int, str]] = {
    "SAMPLE_BYTES": (64 << 20, "bytes"),  # of one sample as it lies in a shard
    "IMAGE_PIXELS": (89_478_485, "pixels"),  # Pillow's own, a quarter of a gigabyte as RGB
    "SHARD_MEMBERS": (1_000_000, "members"),
    "JSON_BYTES": (256 << 20, "bytes"),
    "UNPACKED_BYTES": (4 << 30, "bytes unpacked"),
}
# Honest arrays, tables and archives shrink tenfold, not a hundredfold; bombs a thousandfold.
_HONEST_RATIO = 100


class TooLargeError(ValueError):
    """A file asks for more than the limit; the message names both, and how to raise it."""


def limit(name: Name) -> int:
    """The environment's LABELMESH_MAX_<name>, or the default.

    Raises:
        ValueError: The variable is no whole number.
    """
    given = os.environ.get(f"LABELMESH_MAX_{name}")
    if given is None:
        return _DEFAULTS[name][0]
    if not given.isdecimal():
        raise ValueError(f"LABELMESH_MAX_{name} = {given!r}: must be a whole number")
    return int(given)


def check_limit(name: Name, value: int, where: str) -> None:
    """Raises TooLargeError if `where`, a file or a part of one, has more than the limit."""
    if value > limit(name):
        raise TooLargeError(_sentence(name, value, limit(name), where))


def check_unpacked(unpacked: int, packed: int, where: str) -> None:
    """Check what a compressed file says it unpacks to, in bytes, or has unpacked to so far.

    Raises:
        TooLargeError: Both more than the limit and more than a hundred times its own size.
    """
    most = most_unpacked(packed)
    if unpacked > most:
        raise TooLargeError(_sentence("UNPACKED_BYTES", unpacked, most, where))


def most_unpacked(packed: int) -> int:
    """Bytes that a file of `packed` bytes may unpack to."""
    return max(limit("UNPACKED_BYTES"), _HONEST_RATIO * packed)


def check_parquet(file: Any, packed: int, columns: list[str] | None, where: str) -> None:
    """Check what a Parquet file's columns (None: all) become in memory, from its metadata alone.

    Args:
        file: A `pyarrow.parquet.ParquetFile`.
        packed: Bytes of the file.

    Raises:
        TooLargeError: Far more than it weighs.
    """
    unpacked = 0
    metadata = file.metadata
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in map(group.column, range(group.num_columns)):
            if columns is None or column.path_in_schema.split(".")[0] in columns:
                # Runs of one value take no bytes in the file, but at least four each in memory.
                unpacked += max(column.total_uncompressed_size, 4 * column.num_values)
    check_unpacked(unpacked, packed, where)


def _sentence(name: Name, value: int, most: int, where: str) -> str:
    return (
        f"{where} has {value:,} {_DEFAULTS[name][1]}, more than the limit of {most:,}; if it is "
        f"meant to, set the environment variable LABELMESH_MAX_{name} higher"
    )
