"""The client of the shard actors. It may be pickled: trainers read and write shards directly.

Who may call what: any client at any time the reads, `put` and `put_labels`; one client at a time
`update_knn`, `refresh` and `snapshot`, which all shards carry out together.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
import torch
from ray import cloudpickle
from torch import Tensor

from .. import __version__
from .checks import check_spec
from .inbox import complete_puts
from .kernels.knn import merge_topk
from .memory import check_memory
from .partition import Partition, route
from .recovery import prepare_logs, remove_log
from .shard_link import ShardLink
from .shard_options import ShardOptions, check_resources, memory_by_machine, start_shards
from .shard_status import ShardStatus
from .snapshot import commit, new_version, read_manifest
from .snapshot_manifest import Manifest
from .store import KnnReport, RefreshFn, StoreSpec, UndecidedRoundError
from .store_base import StoreBase
from .wire import to_arrays


class RayStore(StoreBase):
    """`GraphStore` over named Ray actors, one per shard; they live as long as their creator.

    With a log, a shard that dies costs its callers a wait; see docs/durability.md.
    """

    def __init__(
        self,
        spec: StoreSpec,
        partition: Partition,
        link: ShardLink,
        log: tuple[str, str] | None = None,
    ) -> None:
        super().__init__(spec, partition)
        self._link = link
        self._log = log  # URI and name of the store

    @classmethod
    def create(
        cls,
        spec: StoreSpec,
        *,
        num_shards: int = 1,
        name: str = "store",
        log_uri: str | None = None,
        options: ShardOptions | None = None,
    ) -> RayStore:
        """Start the shards as actors `<name>-<random>-shard-<i>` in the job's namespace.

        Call it from the driver: actors die with the process that created them.

        Args:
            log_uri: Where the shards log what they are told, so that one that dies comes back as
                it was: any fsspec URI that all nodes see. It belongs to this store: what earlier
                ones have left there is deleted. None: a shard's death loses the store.

        Raises:
            ValueError: A shape that no store can have, or more than the cluster has.
        """
        check_spec(spec)
        if spec.backend == "ivf" and num_shards > 1:
            raise ValueError(
                f'backend = "ivf" with num_shards = {num_shards}: its cells, and so what it '
                f'misses, would depend on the shards; use update = "refine", or one shard'
            )
        partition = Partition.even(spec.num_nodes, num_shards)
        asked = options or ShardOptions()
        check_resources(asked, num_shards)
        check_memory(spec, -(-spec.num_nodes // num_shards), num_shards, memory_by_machine())
        lineage = f"{name}-{uuid.uuid4().hex[:8]}"
        if log_uri is not None:
            prepare_logs(log_uri, lineage)
        link = start_shards(spec, partition, lineage, log_uri, asked)
        return cls(spec, partition, link, None if log_uri is None else (log_uri, lineage))

    @classmethod
    def restore(
        cls,
        uri: str,
        *,
        num_shards: int | None = None,
        device: str | None = None,
        name: str = "store",
        log_uri: str | None = None,
        options: ShardOptions | None = None,
    ) -> RayStore:
        """The store that any store's `snapshot` wrote to `uri`, on any number of shards."""
        manifest = read_manifest(uri)
        spec = replace(manifest.spec, device=device or manifest.spec.device)
        count = num_shards or len(manifest.parts)
        store = cls.create(spec, num_shards=count, name=name, log_uri=log_uri, options=options)
        try:
            store._link.replace("load", uri, manifest)
        except BaseException:
            store.close()
            raise
        return store

    def load(self, uri: str) -> None:
        """Set the store back to what any store's `snapshot` wrote to `uri`, on the same shards.

        Puts, rounds and labels that came later are gone. Works after deaths too, with or without
        a log. Until it returns shards may hold different states; where it fails, repeat it.

        Raises:
            ValueError: There is no snapshot, or one of another shape.
            StoreLostError: A shard is gone for good.
        """
        manifest = read_manifest(uri)
        _check_same_shape(uri, manifest, self.spec)
        self._link.replace("load", uri, manifest)

    def describe(self, timeout_s: float | None = None) -> tuple[ShardStatus, ...]:
        """Process, node, sizes and queue of every shard. Waits for shards that are restarted.

        Raises:
            StoreLostError: A shard is gone for good, or is not back within `timeout_s` (None: the
                recovery timeout).
        """
        return self._link.status(timeout_s)

    def shard_pids(self) -> tuple[int, ...]:
        """Process ids of the shards, each on its own node."""
        return tuple(shard.pid for shard in self.describe())

    def update_knn(self) -> KnnReport:
        """See `GraphStore.update_knn`."""
        began = time.perf_counter()

        def update() -> KnnReport:
            report: KnnReport = self._link.together("update_knn", self._complete_puts())[0]
            return report

        report = self._link.collectively(update)
        return replace(report, seconds=time.perf_counter() - began)

    def refresh(self, fn: RefreshFn | None, *, round: int) -> Mapping[str, float]:
        """See `GraphStore.refresh`. `fn` is pickled by reference: the shards import its module."""
        pickled = cloudpickle.dumps(fn)

        def solve() -> tuple[Mapping[str, float], str]:
            attempt = uuid.uuid4().hex
            solved = self._link.together("solve", __version__, pickled, round, attempt)
            return solved[0], attempt

        numbers, attempt = self._link.collectively(solve)
        began = time.perf_counter()
        self._link.collectively(lambda: self._publish(round, attempt))
        return {**numbers, "seconds_publish": time.perf_counter() - began}

    def published(self) -> tuple[int, ...]:
        """See `GraphStore.published`."""
        rounds: tuple[int, ...] = self._link.patiently(
            lambda: self._get([self._request(0, "read", "published")])[0]
        )
        return rounds

    def snapshot(self, uri: str) -> None:
        """See `GraphStore.snapshot`; every shard writes its own file, what is staged too."""

        def save() -> None:
            version = new_version(uri)
            parts = self._link.all("save", uri, version, self._complete_puts())
            commit(uri, version, self.spec, self.partition.bounds, parts)

        self._link.collectively(save)

    def close(self) -> None:
        """Stop the shards and delete their logs; whatever no snapshot holds is gone."""
        for actor in self._link.actors:
            ray.kill(actor)
        if self._log is not None:
            remove_log(*self._log)

    # Requests

    def _publish(self, round: int, attempt: str) -> None:
        """Make a round readable that all shards have solved.

        Shard 0 decides: it names the round when the others may still hold it back, and they answer
        for it then too.
        """
        first, *others = range(self.num_shards)
        self._get([self._request(first, "write", "publish", round, attempt)])
        self._get([self._request(shard, "write", "publish", round, attempt) for shard in others])

    def _write(self, method: str, node_ids: Tensor, *columns: Tensor | None) -> None:
        plan = route(self.partition, node_ids)
        order = node_ids.argsort()
        requests = plan.requests()
        sizes = [len(ids) for _, ids in requests]
        sent = [None if c is None else torch.split(c[order], sizes) for c in columns]
        # Shards know by it what they have been told before, and which puts belong together.
        stamp = (uuid.uuid4().hex, len(requests))
        lane = "write" if method == "put_labels" else "put"

        def write() -> None:
            self._get(
                [
                    self._request(shard, lane, method, ids, *(c and c[part] for c in sent), stamp)
                    for part, (shard, ids) in enumerate(requests)
                ]
            )

        self._link.patiently(write)

    def _complete_puts(self) -> tuple[str, ...]:
        """Puts that have reached all their shards by now."""
        shards = range(self.num_shards)
        return complete_puts(self._get([self._request(s, "put", "seal") for s in shards]))

    def _rows(self, node_ids: Tensor, names: Sequence[str], round: int | None) -> dict[str, Tensor]:
        return self._read(node_ids, "rows", tuple(names), round)

    def _pseudo_rows(self, node_ids: Tensor, round: int | None) -> dict[str, Tensor]:
        return self._read(node_ids, "pseudo_rows", round)

    def _read(self, node_ids: Tensor, method: str, *args: Any) -> dict[str, Tensor]:
        """Rows of all owners, one request each, in the order of `node_ids`."""
        plan = route(self.partition, node_ids)
        requests = plan.requests() or [(0, plan.node_ids)]

        def read() -> list[Any]:
            return self._get(
                [self._request(shard, "read", method, ids, *args) for shard, ids in requests]
            )

        replies = self._read_decided(read)
        return {
            name: plan.restore(torch.cat([reply[name] for reply in replies])) for name in replies[0]
        }

    def _search(self, features: Tensor, k: int, round: int | None) -> tuple[Tensor, Tensor]:
        sent = ray.put(to_arrays(features))
        shards = range(self.num_shards)
        replies = self._read_decided(
            lambda: self._get([self._request(s, "read", "search", sent, k, round) for s in shards])
        )
        ids, distances = zip(*replies)
        return merge_topk(ids, distances, k)

    def _read_decided(self, read: Callable[[], list[Any]]) -> list[Any]:
        """Read what may be a round that shard 0 has published and others hold back."""
        try:
            return self._link.patiently(read)
        except UndecidedRoundError:
            self._link.patiently(self._link.settle)
            return self._link.patiently(read)

    def _request(self, shard: int, lane: str, method: str, *args: Any) -> Any:
        return self._link.request(shard, lane, method, *args)

    def _get(self, refs: Sequence[Any]) -> list[Any]:
        return self._link.get(refs)


def _check_same_shape(uri: str, manifest: Manifest, spec: StoreSpec) -> None:
    for name in ("num_nodes", "dim", "num_classes", "k", "metric", "dtype"):
        found, wanted = getattr(manifest.spec, name), getattr(spec, name)
        if found != wanted:
            raise ValueError(
                f"{uri}: the snapshot has {name} = {found}, this store has {wanted}; restore it "
                f"into a store of its own"
            )
