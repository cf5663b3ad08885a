"""Shards: plain tar files in WebDataset's layout, members `key.<ext>`.

They are written whole and read by range.

A shard holds inputs only. Labels are in the manifest, so that a reader of inputs cannot meet them.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .files import is_local, join, locate, write_atomic
from .limits import TooLargeError, check_limit, check_parquet
from .names import check_key, check_member
from .schema import Kind

_MAX_GAP = 16 << 10
_MAX_RUN = 8 << 20


@dataclass(frozen=True)
class Place:
    """Where a sample's input lies, as the manifest records it."""

    shard: str
    offset: int
    size: int
    sha256: str


class ShardWriter:
    """Writes `shards/<prefix>-000000.tar`, ...; a shard is built in memory and written whole."""

    def __init__(
        self, dest: str, prefix: str, *, max_bytes: int = 64 << 20, max_samples: int = 10_000
    ) -> None:
        self._dest, self._prefix = dest, prefix
        self._max_bytes, self._max_samples = max_bytes, max_samples
        self._num_shards = 0
        self._open()

    def add(self, key: str, data: bytes, ext: str) -> Place:
        """Append one sample.

        Raises:
            ValueError: A dot in the key's last part, where WebDataset would cut the key, a key that
                leads out of the shard, or more bytes than a sample may have.
        """
        if not key or "." in key.rsplit("/", 1)[-1]:
            raise ValueError(f"key {key!r}: must not be empty or have a dot in its last part")
        check_key(key, self._name)
        check_limit("SAMPLE_BYTES", len(data), f"sample {key!r}")
        if self._num_samples and (
            self._num_samples >= self._max_samples
            or self._buffer.tell() + len(data) > self._max_bytes
        ):
            self.close()
        member = tarfile.TarInfo(f"{key}.{ext}")
        member.size = len(data)
        self._tar.addfile(member, io.BytesIO(data))
        self._num_samples += 1
        # Long names take extra headers, so the offset is counted from the end, in blocks of 512.
        offset = self._buffer.tell() - -(-len(data) // 512) * 512
        return Place(self._name, offset, len(data), hashlib.sha256(data).hexdigest())

    def close(self) -> None:
        """Write the shard at hand; `add` starts another."""
        if self._num_samples:
            self._tar.close()
            write_atomic(join(self._dest, self._name), self._buffer.getvalue())
            self._num_shards += 1
            self._open()

    def _open(self) -> None:
        self._name = f"shards/{self._prefix}-{self._num_shards:06d}.tar"
        self._buffer = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._buffer, mode="w", format=tarfile.GNU_FORMAT)
        self._num_samples = 0


def list_members(uri: str) -> list[tuple[str, str, int, int]]:
    """(key, extension, offset, size) of every file in a tar; reads the headers only.

    Raises:
        ValueError: It is missing, no tar file, or has members that no data set has: links, devices,
            names that lead out of it, too many of them or too large ones.
    """
    fs, path = locate(uri)
    found: list[tuple[str, str, int, int]] = []
    try:
        with fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for number, member in enumerate(tar, start=1):
                check_limit("SHARD_MEMBERS", number, uri)
                check_member(member, uri)
                if member.isfile():
                    check_limit("SAMPLE_BYTES", member.size, f"{uri}: {member.name!r}")
                    found.append((*split_name(member.name), member.offset_data, member.size))
        return found
    except FileNotFoundError:
        raise ValueError(f"{uri}: the manifest lists this shard, but it is missing") from None
    except tarfile.TarError as error:
        raise ValueError(f"{uri}: not a readable tar file ({error})") from None


def shard_contents(kind: Kind, uri: str) -> dict[str, set[tuple[int, int]]]:
    """(offset, size) of what a shard holds, by key, as the manifest would record it.

    Raises:
        ValueError: The shard is missing or cannot be read.
    """
    found: dict[str, set[tuple[int, int]]] = {}
    if kind == "image":
        for key, _, offset, size in list_members(uri):
            found.setdefault(key, set()).add((offset, size))
        return found
    fs, path = locate(uri)
    try:
        with fs.open(path, "rb") as file:
            table = pq.ParquetFile(file)
            check_parquet(table, fs.size(path), None, uri)
            size = 4 * table.schema_arrow.field("features").type.list_size
            keys = table.read(columns=["key"])["key"].to_pylist()
    except FileNotFoundError:
        raise ValueError(f"{uri}: the manifest lists this file, but it is missing") from None
    except TooLargeError:
        raise
    except (pa.ArrowInvalid, KeyError) as error:
        raise ValueError(f"{uri}: not a readable Parquet file of features ({error})") from None
    return {key: {(row, size)} for row, key in enumerate(keys)}


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member, cut at the first dot of its last part, as WebDataset does."""
    folder, slash, base = name.rpartition("/")
    stem, _, ext = base.partition(".")
    return folder + slash + stem, ext


def read_ranges(
    uri: str, shards: list[str], shard_ids: np.ndarray, offsets: np.ndarray, sizes: np.ndarray
) -> list[bytes | str]:
    """Bytes of many samples; neighbours in a shard are fetched in one read.

    Args:
        shard_ids: Index into `shards` of each sample.

    Returns:
        The content of each sample, or (a str) why there is none: the shard is missing or cut off.

    Raises:
        OSError: The file system failed otherwise, for example the network.
    """
    order = np.lexsort((offsets, shard_ids))
    shard, start = shard_ids[order], offsets[order]
    stop = start + sizes[order]
    if not len(order):
        return []
    first = np.r_[
        True,
        (shard[1:] != shard[:-1])
        | (start[1:] - stop[:-1] > _MAX_GAP)
        | (start[1:] // _MAX_RUN != start[:-1] // _MAX_RUN),
    ]
    heads = np.flatnonzero(first)
    run_stop = np.maximum.reduceat(stop, heads)
    paths = [shards[i] for i in shard[heads]]
    runs = _fetch(uri, paths, start[heads].tolist(), run_stop.tolist())
    found: list[bytes | str] = [b""] * len(order)
    run_of = np.cumsum(first) - 1
    begins = start - start[heads][run_of]
    for position, run, begin, size in zip(
        order.tolist(), run_of.tolist(), begins.tolist(), (stop - start).tolist()
    ):
        content = runs[run]
        if isinstance(content, bytes):
            piece = content[begin : begin + size]
            found[position] = piece if len(piece) == size else f"{paths[run]} is cut off"
        else:
            found[position] = content
    return found


def _fetch(uri: str, shards: list[str], starts: list[int], stops: list[int]) -> list[bytes | str]:
    fs, root = locate(uri)
    paths = [f"{root.rstrip('/')}/{shard}" for shard in shards]
    if is_local(fs):
        return _fetch_local(paths, shards, starts, stops)
    contents = fs.cat_ranges(paths, starts, stops, on_error="return")
    return [
        bytes(content)
        if not isinstance(content, Exception)
        else _reason(fs, path, shard, start, content)
        for path, shard, start, content in zip(paths, shards, starts, contents)
    ]


def _reason(fs: Any, path: str, shard: str, start: int, error: Exception) -> str:
    if isinstance(error, FileNotFoundError) or not fs.exists(path):
        return f"{shard} is missing"
    if fs.size(path) <= start:  # S3 refuses a range that starts behind the end
        return f"{shard} is cut off"
    raise error


def _fetch_local(
    paths: list[str], shards: list[str], starts: list[int], stops: list[int]
) -> list[bytes | str]:
    contents: list[bytes | str] = []
    opened = ""
    handle = -1
    try:
        for path, shard, start, stop in zip(paths, shards, starts, stops):
            if path != opened:  # runs are sorted by shard
                if handle >= 0:
                    os.close(handle)
                opened, handle = path, -1
                if os.path.exists(path):
                    handle = os.open(path, os.O_RDONLY)
            missing = handle < 0
            contents.append(f"{shard} is missing" if missing else _pread(handle, start, stop))
    finally:
        if handle >= 0:
            os.close(handle)
    return contents


def _pread(handle: int, start: int, stop: int) -> bytes:
    content = os.pread(handle, stop - start, start)
    while len(content) < stop - start:  # a read may stop early; an empty one is the end
        more = os.pread(handle, stop - start - len(content), start + len(content))
        if not more:
            break
        content += more
    return content
