"""The Ray actor of one shard: `Shard` on two lanes, a fence, and the process group of the shards.

Reads and puts have lanes (concurrency groups) of their own, so they are answered while a round is
computed on the third. Every request names the incarnation of the shard that it is meant for: Ray
restarts an actor that died, and a shard without a log is then empty and would answer as if nothing
had happened. Collectives name the group that they are meant for as well.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import ray
import torch
from ray import cloudpickle

from .. import __version__
from .journal import Journal
from .partition import Partition
from .recovery import open_journal, recover
from .shard import Shard
from .shard_status import ShardStatus
from .sharded_view import GroupChangedError, ShardGroup, open_rendezvous, reach_rendezvous
from .snapshot import read_rows, write_part
from .snapshot_manifest import Manifest, Part
from .store import KnnReport, ShardChangedError, StoreLostError, StoreSpec
from .wire import to_arrays, to_tensors

T = TypeVar("T")

# Reads that a shard answers at once; writes are answered one after the other.
READ_THREADS = 4


class ShardActor:
    """One `Shard` behind Ray. Tensors travel as numpy arrays, which Ray does not pickle.

    Args:
        threads: Threads of the arithmetic; None: this machine's cores by the number of shards.
        lineage: Name of the store, which no other store has.
        log_uri: Where the shards of this store keep their logs; None: nowhere.
    """

    def __init__(
        self,
        spec: StoreSpec,
        partition: Partition,
        rank: int,
        threads: int | None,
        lineage: str,
        log_uri: str | None = None,
    ) -> None:
        torch.set_num_threads(threads or max(1, _num_cores() // partition.num_shards))
        self._partition, self._rank, self._lineage = partition, rank, lineage
        self._shard = Shard(spec, partition, rank)
        self._incarnation = uuid.uuid4().hex
        self._log_uri = log_uri
        self._journal: Journal | None = None
        self._recovered = False
        self._problem = self._come_back()
        self._host: str = ray.util.get_node_ip_address()
        self._group: ShardGroup | None = None
        self._group_name: str | None = None
        self._rendezvous: Any = None

    def status(self) -> ShardStatus:
        """Who this is, and how it is; never refused."""
        context = ray.get_runtime_context()
        return ShardStatus(
            rank=self._rank,
            pid=os.getpid(),
            node_id=context.get_node_id(),
            incarnation=self._incarnation,
            lineage=self._lineage,
            is_whole=not self._problem,
            recovered=self._recovered,
            problem=self._problem,
            version=self._journal.version if self._journal else 0,
            log_bytes=self._journal.num_bytes if self._journal else 0,
            **self._shard.sizes(),
        )

    def leave(self, incarnation: str) -> None:
        """Leave the group; a collective that is under way fails, here or at the others."""
        self._fence(incarnation, whole=False)
        group, self._group, self._group_name = self._group, None, None
        self._rendezvous = None  # who still waits there is told by its end
        if group is not None:  # the shard keeps it: alone it would take itself for the whole store
            group.abort()

    def open_rendezvous(self, incarnation: str) -> tuple[str, int]:
        """Host and port where the shards can meet to form a group."""
        self._fence(incarnation)
        self._rendezvous = open_rendezvous(self._host)
        return self._host, self._rendezvous.port

    def join(self, incarnation: str, name: str, host: str, port: int, backend: str) -> None:
        """Form the group of all shards; returns when all have come.

        Raises:
            GroupChangedError: Someone left before all had come.
        """
        self._fence(incarnation)
        group = ShardGroup(
            self._rank,
            self._partition.num_shards,
            reach_rendezvous(host, port),
            host=self._host,
            backend=backend,
        )
        self._group = group
        self._shard.join(group)
        self._group_name = name

    def call(self, incarnation: str, method: str, *args: Any) -> Any:
        """Call a method of the shard that is not collective."""
        self._fence(incarnation)
        return to_arrays(getattr(self._shard, method)(*to_tensors(args)))

    def update_knn(
        self, incarnation: str, group: str | None, complete: tuple[str, ...]
    ) -> KnnReport:
        """`Shard.update_knn`. Collective."""
        self._fence(incarnation)
        return self._together(group, lambda: self._shard.update_knn(complete))

    def solve(
        self,
        incarnation: str,
        group: str | None,
        version: str,
        pickled_fn: bytes,
        round: int,
        attempt: str,
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
            return self._shard.solve(cloudpickle.loads(pickled_fn), round, attempt)

        return self._together(group, run)

    def save(self, incarnation: str, uri: str, version: str, complete: tuple[str, ...]) -> Part:
        """Write the own part of a snapshot, with the puts that are complete."""
        self._fence(incarnation)
        self._shard.absorb(complete)
        return write_part(uri, version, self._rank, self._shard.contents())

    def load(self, incarnation: str, uri: str, manifest: Manifest) -> str:
        """Read the own rows of a snapshot, whatever number of shards wrote it.

        Returns:
            The incarnation from now on: what was meant for the contents before is refused.
        """
        self._fence(incarnation, whole=False)
        if self._log_uri is not None and self._journal is None:  # it could not be replayed
            self._journal = open_journal(self._log_uri, self._lineage, self._rank)
            self._journal.begin()
            self._shard.keep_log(self._journal)
        self._shard.load(read_rows(uri, manifest, *self._partition.span(self._rank)))
        self._incarnation, self._problem = uuid.uuid4().hex, ""
        return self._incarnation

    def _come_back(self) -> str:
        """Be what the shard was before it died; why that is not possible, or "".

        Nothing is raised: Ray would give up the actor, and nobody could ask it why.
        """
        who = f"shard {self._rank} of {self._partition.num_shards}"
        if self._log_uri is None:
            if not ray.get_runtime_context().was_current_actor_reconstructed:
                return ""
            return (
                f"{who} died and was restarted empty; restore the store from a snapshot, or give "
                f"it a log (log_uri)"
            )
        try:
            journal = open_journal(self._log_uri, self._lineage, self._rank)
            self._recovered = recover(self._shard, journal)
        except Exception as error:
            return f"{who} has no log to come back from: {error}"
        self._journal = journal
        return ""

    def _fence(self, incarnation: str, *, whole: bool = True) -> None:
        if incarnation != self._incarnation:
            raise ShardChangedError(
                f"shard {self._rank} of {self._partition.num_shards} was restarted or set back; "
                f"restore the store from a snapshot"
            )
        if whole and self._problem:
            raise StoreLostError(self._problem)

    def _together(self, group: str | None, run: Callable[[], T]) -> T:
        """Do this shard's part of a collective; after an error leave, so that no one waits.

        Raises:
            GroupChangedError: The caller means a group that this shard is not in.
        """
        if self._partition.num_shards > 1 and (group is None or group != self._group_name):
            raise GroupChangedError(f"shard {self._rank} is not in the group that was meant")
        try:
            return run()
        except BaseException:
            left = self._group
            if left is not None:
                left.abort()
            raise


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux: the cores that this process may use
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
