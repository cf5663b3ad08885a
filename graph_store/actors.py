"""The Ray actor of one shard: `Shard` on two lanes, a fence, and the process group of the shards.

Reads and puts have lanes (concurrency groups) of their own, so they are answered while a round is
computed on the third. Every request names the incarnation of the shard that it is meant for: Ray
restarts an actor that died with empty tables, and an empty shard would answer as if nothing had
happened.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from ray import cloudpickle
from torch import Tensor

from .. import __version__
from .partition import Partition
from .shard import Shard
from .sharded_view import ShardGroup, open_rendezvous, reach_rendezvous
from .snapshot import Manifest, Part, read_rows, write_part
from .store import KnnReport, StoreLostError, StoreSpec

T = TypeVar("T")

# Reads that a shard answers at once; writes are answered one after the other.
READ_THREADS = 4


class ShardActor:
    """One `Shard` behind Ray. Tensors travel as numpy arrays, which Ray does not pickle.

    Args:
        threads: Threads of the arithmetic; None: this machine's cores by the number of shards.
    """

    def __init__(
        self, spec: StoreSpec, partition: Partition, rank: int, threads: int | None
    ) -> None:
        torch.set_num_threads(threads or max(1, _num_cores() // partition.num_shards))
        self._shard = Shard(spec, partition, rank)
        self._partition, self._rank = partition, rank
        self._incarnation = uuid.uuid4().hex
        self._host: str = ray.util.get_node_ip_address()
        self._group: ShardGroup | None = None
        self._rendezvous: Any = None

    def incarnation(self) -> str:
        """Tells this process from those before and after it."""
        return self._incarnation

    def open_rendezvous(self, incarnation: str) -> tuple[str, int]:
        """Host and port where the shards can meet to form a group."""
        self._fence(incarnation)
        self._rendezvous = open_rendezvous(self._host)
        return self._host, self._rendezvous.port

    def join(self, incarnation: str, host: str, port: int, backend: str) -> None:
        """Form the group of all shards; returns when all have come."""
        self._fence(incarnation)
        self._group = ShardGroup(
            self._rank,
            self._partition.num_shards,
            reach_rendezvous(host, port),
            host=self._host,
            backend=backend,
        )
        self._shard.join(self._group)

    def call(self, incarnation: str, method: str, *args: Any) -> Any:
        """Call a method of the shard that is not collective."""
        self._fence(incarnation)
        return to_arrays(getattr(self._shard, method)(*to_tensors(args)))

    def update_knn(self, incarnation: str, complete: tuple[str, ...]) -> KnnReport:
        """`Shard.update_knn`. Collective."""
        self._fence(incarnation)
        return self._together(lambda: self._shard.update_knn(complete))

    def solve(
        self, incarnation: str, version: str, pickled_fn: bytes, round: int
    ) -> Mapping[str, float]:
        """`Shard.solve` with a function that was pickled by reference. Collective.

        Raises:
            ValueError: The caller's version of Labelmesh is another: its function is not ours.
        """
        self._fence(incarnation)

        def run() -> Mapping[str, float]:
            if version != __version__:
                raise ValueError(
                    f"refresh was called by Labelmesh {version}, but the shards run "
                    f"{__version__}; install one version on the whole cluster"
                )
            return self._shard.solve(cloudpickle.loads(pickled_fn), round)

        return self._together(run)

    def save(self, incarnation: str, uri: str, version: str, complete: tuple[str, ...]) -> Part:
        """Write the own part of a snapshot, with the puts that are complete."""
        self._fence(incarnation)
        self._shard.absorb(complete)
        return write_part(uri, version, self._rank, self._shard.contents())

    def load(self, incarnation: str, uri: str, manifest: Manifest) -> None:
        """Read the own rows of a snapshot, whatever number of shards wrote it."""
        self._fence(incarnation)
        self._shard.load(read_rows(uri, manifest, *self._partition.span(self._rank)))

    def _fence(self, incarnation: str) -> None:
        if incarnation != self._incarnation:
            raise StoreLostError(
                f"shard {self._rank} of {self._partition.num_shards} died and was restarted "
                f"empty; restore the store from a snapshot"
            )

    def _together(self, run: Callable[[], T]) -> T:
        """Do this shard's part of a collective; after an error leave, so that no one waits."""
        try:
            return run()
        except BaseException:
            if self._group is not None:
                self._group.abort()
            raise


def to_arrays(value: Any) -> Any:
    """Replace the tensors in tuples and dicts by numpy arrays of the same memory."""
    if isinstance(value, Tensor):
        return value.numpy()
    if isinstance(value, dict):
        return {key: to_arrays(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(to_arrays(item) for item in value)
    return value


def to_tensors(value: Any) -> Any:
    """Replace the arrays in tuples and dicts by tensors; copies, for Ray's arrays are read-only."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    if isinstance(value, dict):
        return {key: to_tensors(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(to_tensors(item) for item in value)
    return value


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: the cores that this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
