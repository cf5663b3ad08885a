"""Fetching and decoding inputs by manifest row: images from shards, embeddings from Parquet."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from .decoding import open_image
from .files import join, locate
from .limits import check_parquet
from .manifest import SampleIndex
from .shards import read_ranges

_FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = {1: "L", 3: "RGB"}
# Small images spend their time under the interpreter's lock: threads made them slower (96 instead
# of 56 microseconds for 28x28).
_THREADED_BYTES = 64 << 10
_GROUP_CACHE_BYTES = 64 << 20


@dataclass(frozen=True)
class Fetched:
    """Samples in the order asked for; `broken` names positions whose values mean nothing."""

    values: np.ndarray
    broken: dict[int, str]


@runtime_checkable
class SampleSource(Protocol):
    """Fetches inputs by manifest row."""

    dtype: type[np.generic]

    def fetch(self, rows: np.ndarray) -> Fetched: ...


def open_source(index: SampleIndex, *, verify_sha: bool, num_threads: int) -> SampleSource:
    """The source of a data set's inputs.

    Args:
        verify_sha: Compare every sample with the manifest's sha256.
        num_threads: For decoding large images.
    """
    if index.info.kind == "image":
        return _ImageSource(index, verify_sha, num_threads)
    return _EmbeddingSource(index, verify_sha)


def decode_image(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    """Pixels of an image file as uint8 `c h w`.

    Raises:
        ValueError: It cannot be decoded, or is not of this shape.
    """
    image = open_image(data, _FORMATS, shape)
    if image.mode != _MODES[shape[0]]:
        raise ValueError(f"is a {image.mode} image, expected {_MODES[shape[0]]}")
    pixels = np.asarray(image)
    pixels = pixels[None] if shape[0] == 1 else pixels.transpose(2, 0, 1)
    if pixels.shape != shape:
        raise ValueError(f"has shape {pixels.shape}, expected {shape}")
    return pixels


class _ImageSource:
    dtype: type[np.generic] = np.uint8

    def __init__(self, index: SampleIndex, verify_sha: bool, num_threads: int) -> None:
        self._index, self._verify_sha = index, verify_sha
        self._is_threaded = num_threads > 1 and np.prod(index.info.shape) >= _THREADED_BYTES
        self._num_threads = num_threads

    def fetch(self, rows: np.ndarray) -> Fetched:
        index = self._index
        contents = read_ranges(
            index.uri,
            list(index.shards),
            index.shard_ids[rows],
            index.offsets[rows],
            index.sizes[rows],
        )
        values = np.empty((len(rows), *index.info.shape), np.uint8)
        digests = index.sha256.take(pa.array(rows)).to_pylist() if self._verify_sha else None

        def decode(position: int) -> str | None:
            content = contents[position]
            if isinstance(content, str):
                return content
            if digests and hashlib.sha256(content).hexdigest() != digests[position]:
                return "differs from the manifest's sha256"
            try:
                values[position] = decode_image(content, index.info.shape)
            except ValueError as error:
                return str(error)
            return None

        positions = range(len(rows))
        if self._is_threaded:
            with ThreadPoolExecutor(self._num_threads) as pool:
                reasons = list(pool.map(decode, positions))
        else:
            reasons = [decode(position) for position in positions]
        return Fetched(values, {i: r for i, r in enumerate(reasons) if r is not None})


class _EmbeddingSource:
    dtype: type[np.generic] = np.float32

    def __init__(self, index: SampleIndex, verify_sha: bool) -> None:
        self._index, self._verify_sha = index, verify_sha
        self._lock = threading.Lock()
        self._groups: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._group_bytes = 0

    def fetch(self, rows: np.ndarray) -> Fetched:
        index = self._index
        values = np.zeros((len(rows), *index.info.shape), np.float32)
        broken: dict[int, str] = {}
        for shard in np.unique(index.shard_ids[rows]).tolist():
            inside = np.flatnonzero(index.shard_ids[rows] == shard)
            try:
                self._fill(values, inside, shard, index.offsets[rows[inside]])
            except (FileNotFoundError, pa.ArrowInvalid, IndexError, ValueError) as error:
                reason = f"{index.shards[shard]} cannot be read ({error})"
                broken.update(dict.fromkeys(inside.tolist(), reason))
        infinite = np.flatnonzero(~np.isfinite(values).all(1))
        broken.update(dict.fromkeys(infinite.tolist(), "has NaN or infinite features"))
        if self._verify_sha:
            for i, digest in enumerate(index.sha256.take(pa.array(rows)).to_pylist()):
                if hashlib.sha256(values[i].astype("<f4").tobytes()).hexdigest() != digest:
                    broken.setdefault(i, "differs from the manifest's sha256")
        return Fetched(values, broken)

    def _fill(
        self, values: np.ndarray, places: np.ndarray, shard: int, offsets: np.ndarray
    ) -> None:
        fs, path = locate(join(self._index.uri, self._index.shards[shard]))
        with self._lock, fs.open(path, "rb") as handle:
            file = pq.ParquetFile(handle)
            sizes = [
                file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)
            ]
            check_parquet(file, fs.size(path), ["features"], self._index.shards[shard])
            starts = np.r_[0, np.cumsum(sizes)]
            if offsets.max() >= starts[-1]:
                raise ValueError(f"has {starts[-1]} rows")
            group_of = np.searchsorted(starts, offsets, side="right") - 1
            for group in np.unique(group_of).tolist():
                inside = group_of == group
                rows = self._group(file, shard, group)
                values[places[inside]] = rows[offsets[inside] - starts[group]]

    def _group(self, file: pq.ParquetFile, shard: int, group: int) -> np.ndarray:
        found = self._groups.get((shard, group))
        if found is None:
            column = file.read_row_group(group, columns=["features"])["features"].combine_chunks()
            found = column.flatten().to_numpy().reshape(len(column), -1).astype(np.float32)
            self._groups[shard, group] = found
            self._group_bytes += found.nbytes
            while self._group_bytes > _GROUP_CACHE_BYTES and len(self._groups) > 1:
                self._group_bytes -= self._groups.popitem(last=False)[1].nbytes
        self._groups.move_to_end((shard, group))
        return found
