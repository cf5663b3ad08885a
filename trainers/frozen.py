"""Features of a frozen backbone: computed once, kept in files, read instead of samples.

A `FeatureCache` is a folder of parts, each a NumPy file of (manifest row, features) records that is
mapped into memory. The folder's name is a fingerprint of the data set and of the backbone with its
weights, so runs of any split, seed or method share it. Parts are written beside their place and
renamed, so a reader sees a whole part or none; a part that was cut off is left aside and its rows
are computed again. Two runs that write at once write the same rows twice, which does no harm. A
file that ends in `.tmp` was left by a crash and may be deleted.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from ..datasets.manifest import SampleIndex, load_index
from ..datasets.reader import Reader
from ..datasets.schema import NodeBatch
from ..datasets.sharding import share_of
from .backbones.frozen import Frozen
from .batches import View, prefetch
from .engine import Comm
from .run_dir import RunDir

ROWS_PER_PART = 8192


def cache_folder(cache_dir: str | None, run: RunDir) -> Path:
    """Where a run keeps features: `cache_dir`, or `cache` beside the run's own folder.

    Raises:
        ValueError: The folder is not local.
    """
    folder = cache_dir
    if folder is None:
        folder = run.uri if run.local_path is None else str(run.local_path.parent / "cache")
    if "://" in folder:
        raise ValueError(
            f"features of a frozen backbone are cached in local files, not at {folder}; set "
            "model.cache_dir to a folder, or model.cache_features = false"
        )
    return Path(folder).expanduser()


class FeatureCache:
    """Features by manifest row, in a folder that processes share.

    Args:
        num_rows: Of the manifest.
        width: Features per row.
    """

    def __init__(self, folder: Path, num_rows: int, width: int) -> None:
        self.folder, self._width = folder, width
        self._dtype = np.dtype([("row", "<i8"), ("features", "<f4", (width,))])
        self._parts: dict[str, np.ndarray] = {}
        self._part_of = np.full(num_rows, -1)
        self._place = np.zeros(num_rows, np.int64)
        self.reload()

    def reload(self) -> None:
        """See the parts that have come since; those that are there already stay in charge."""
        for path in sorted(self.folder.glob("part-*.npy")):
            part = None if path.name in self._parts else self._open(path)
            if part is None:
                continue
            rows = part["row"]
            fresh = self._part_of[rows] < 0
            self._part_of[rows[fresh]] = len(self._parts)
            self._place[rows[fresh]] = np.flatnonzero(fresh)
            self._parts[path.name] = part

    def has(self, rows: Int64[Tensor, " b"]) -> Bool[Tensor, " b"]:
        return torch.from_numpy(self._part_of[rows.numpy()] >= 0)

    def read(self, rows: Int64[Tensor, " b"]) -> Float[Tensor, "b D"]:
        """Features of rows that are there."""
        part_of, place = self._part_of[rows.numpy()], self._place[rows.numpy()]
        assert (part_of >= 0).all(), "rows that were never computed"
        out = np.empty((len(rows), self._width), np.float32)
        parts = list(self._parts.values())
        for number in np.unique(part_of):
            mine = part_of == number
            out[mine] = parts[number]["features"][place[mine]]
        return torch.from_numpy(out)

    def write(self, rows: Int64[Tensor, " b"], features: Float[Tensor, "b D"]) -> None:
        """Add a part; it is there after the next `reload`."""
        records = np.empty(len(rows), self._dtype)
        records["row"], records["features"] = rows.numpy(), features.numpy()
        digest = hashlib.blake2b(records["row"].tobytes(), digest_size=8).hexdigest()
        path = self.folder / f"part-{digest}.npy"
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
        with open(temporary, "wb") as file:
            np.save(file, records, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())  # a rename may reach the disk before what it names
        temporary.replace(path)

    def _open(self, path: Path) -> np.ndarray | None:
        """None for a file that is cut off or holds something else."""
        try:
            part: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError):
            return None
        fits = part.dtype == self._dtype and part.ndim == 1 and len(part) > 0
        rows = part["row"] if fits else np.array([-1])
        return part if fits and rows.min() >= 0 and rows.max() < len(self._place) else None


class FeatureReader:
    """Nodes' features, where a `Reader` has their samples."""

    def __init__(
        self,
        cache: FeatureCache,
        rows: Int64[Tensor, " n"],
        labels: Int64[Tensor, " n"],
        groups: Int64[Tensor, " n"],
    ) -> None:
        self._cache, self._rows, self._labels = cache, rows, labels
        self.groups = groups

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, node_ids: Int64[Tensor, " b"]) -> NodeBatch:
        """Features and given labels of some nodes, in this order, without unreadable ones.

        Raises:
            ValueError: No such node.
        """
        wrong = (node_ids < 0) | (node_ids >= len(self))
        if wrong.any():
            raise ValueError(f"node {int(node_ids[wrong][0])}: ids are 0..{len(self) - 1}")
        found = node_ids[self._cache.has(self._rows[node_ids])]
        return NodeBatch(found, self._cache.read(self._rows[found]), self._labels[found])


class FeatureSource:
    """Makes readers of features, and the features where they are not in the cache yet.

    Args:
        uri: The data set.
        encoder: Called in eval mode on plain views.
        width: Of its output.
        cache_dir: Folder of all caches.
        name: Of the backbone, for people who look into the folder.
        about: What else the features depend on besides the encoder's weights.
        chunk: Samples per forward pass.
    """

    def __init__(
        self,
        uri: str,
        encoder: Frozen,
        *,
        width: int,
        view: View,
        cache_dir: Path,
        name: str,
        about: Mapping[str, Any],
        device: torch.device,
        comm: Comm,
        chunk: int,
        max_broken_share: float,
    ) -> None:
        self._uri, self._encoder, self._view = uri, encoder, view
        self._device, self._comm, self._chunk = device, comm, chunk
        self._max_broken_share = max_broken_share
        index = load_index(uri)
        told = {
            "data": dataset_fingerprint(index),
            "weights": weights_fingerprint(encoder),
            "backbone": name,
            "shape": list(index.info.shape),
            "about": about,
        }
        text = json.dumps(told, sort_keys=True)
        key = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        folder = cache_dir / f"features-{index.info.name}-{key}"
        self._cache = FeatureCache(folder, len(index), width)

    @property
    def folder(self) -> Path:
        """Where these features are."""
        return self._cache.folder

    def reader(self, rows: Int64[Tensor, " n"], labels: Int64[Tensor, " n"]) -> FeatureReader:
        """A reader of nodes; computes what is missing of their features first. Collective.

        Raises:
            ValueError: No such rows, or too many samples that cannot be read.
            OSError: The file system failed.
        """
        samples = Reader(
            self._uri, rows, labels, cache_bytes=0, max_broken_share=self._max_broken_share
        )
        chunks = torch.split(torch.arange(len(rows)), self._chunk) if len(rows) else ()
        own = share_of(len(chunks), self._comm.rank, self._comm.world_size)
        self._fill(samples, rows, [chunks[i] for i in own])
        self._comm.barrier()
        self._cache.reload()
        # What other ranks computed on machines that do not share the folder, and broken samples.
        self._fill(samples, rows, list(chunks))
        return FeatureReader(self._cache, rows, labels, samples.groups)

    def _fill(self, samples: Reader, rows: Tensor, chunks: list[Tensor]) -> None:
        missing = [ids[~self._cache.has(rows[ids])] for ids in chunks]
        missing = [ids for ids in missing if len(ids)]
        if not missing:
            return
        self._encoder.to(self._device)
        for found, features in in_parts(self._computed(samples, missing), ROWS_PER_PART):
            self._cache.write(rows[found], features)
        self._encoder.cpu()
        self._cache.reload()

    @torch.no_grad()
    def _computed(self, samples: Reader, chunks: list[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in prefetch(samples.read, chunks, depth=2):
            inputs = self._view(batch.inputs.to(self._device), torch.Generator())
            if len(inputs):
                yield batch.node_ids, self._encoder(inputs).float().cpu()


def in_parts(
    batches: Iterator[tuple[Tensor, Tensor]], least: int
) -> Iterator[tuple[Int64[Tensor, " b"], Float[Tensor, "b D"]]]:
    """Batches put together until there are `least` rows; the last part may have fewer."""
    waiting: list[tuple[Tensor, Tensor]] = []
    for batch in batches:
        waiting.append(batch)
        if sum(len(ids) for ids, _ in waiting) >= least:
            yield torch.cat([ids for ids, _ in waiting]), torch.cat([x for _, x in waiting])
            waiting = []
    if waiting:
        yield torch.cat([ids for ids, _ in waiting]), torch.cat([x for _, x in waiting])


def dataset_fingerprint(index: SampleIndex) -> str:
    """Of everything that says which samples lie in which rows; its place is no matter where the
    manifest has checksums."""
    sums = index.sha256.to_pylist()
    place = "" if all(sums) else index.uri
    about = [index.info.kind, index.info.shape, index.shards, len(index), place]
    digest = hashlib.blake2b(json.dumps(about).encode(), digest_size=16)
    for column in (index.shard_ids, index.offsets, index.sizes):
        digest.update(np.ascontiguousarray(column, np.int64).tobytes())
    for texts in (index.keys.to_pylist(), sums):
        digest.update("\n".join(str(text) for text in texts).encode())
    return digest.hexdigest()


def weights_fingerprint(module: nn.Module) -> str:
    """Of all parameters and buffers, with their names, shapes and types."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype};".encode())
        digest.update(value.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
