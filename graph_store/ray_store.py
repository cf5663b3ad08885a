"""The client of the shard actors. It may be pickled: trainers read and write shards directly.

Who may call what: any client at any time the reads, `put` and `put_labels`; one client at a time
`update_knn`, `refresh` and `snapshot`, which all shards carry out together.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray
import torch
from ray import cloudpickle
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError
from torch import Tensor

from .. import __version__
from .actors import READ_THREADS, ShardActor, to_arrays, to_tensors
from .checks import check_spec
from .inbox import complete_puts
from .kernels.knn import merge_topk
from .memory import check_memory
from .partition import Partition, route
from .sharded_view import PeerLostError
from .snapshot import commit, new_version, read_manifest
from .store import KnnReport, RefreshFn, StoreLostError, StoreSpec
from .store_base import StoreBase


@dataclass(frozen=True)
class ShardOptions:
    """What one shard asks of Ray.

    Attributes:
        threads_per_shard: None: the machine's cores by the number of shards, at least 1.
        scheduling_strategy: Ray's: "DEFAULT", "SPREAD" or a placement group's.
        start_timeout_s: How long to wait until all shards run.
        group_backend: How shards talk: "gloo", also between GPUs, as counts and ids mostly lie on
            the CPU and it notices a lost shard; "nccl" only where every shard has a GPU of its own.
    """

    cpus_per_shard: float = 0.5
    gpus_per_shard: float = 0.0
    threads_per_shard: int | None = None
    scheduling_strategy: Any = "DEFAULT"
    start_timeout_s: float = 300.0
    group_backend: Literal["gloo", "nccl"] = "gloo"


class RayStore(StoreBase):
    """`GraphStore` over named Ray actors, one per shard; they live as long as their creator."""

    def __init__(
        self,
        spec: StoreSpec,
        partition: Partition,
        shards: Sequence[Any],
        incarnations: Sequence[str],
        backend: str,
    ) -> None:
        super().__init__(spec, partition)
        self._shards = list(shards)
        self._incarnations = list(incarnations)
        self._backend = backend

    @classmethod
    def create(
        cls,
        spec: StoreSpec,
        *,
        num_shards: int = 1,
        name: str = "store",
        options: ShardOptions | None = None,
    ) -> RayStore:
        """Start the shards as actors `<name>-<random>-shard-<i>` in the job's namespace.

        Call it from the driver: actors die with the process that created them.

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
        _check_resources(asked, num_shards)
        check_memory(spec, -(-spec.num_nodes // num_shards), num_shards, _memory_by_machine())
        unique = f"{name}-{uuid.uuid4().hex[:8]}"
        shards = [_start_actor(spec, partition, rank, unique, asked) for rank in range(num_shards)]
        try:
            waiting = [shard.incarnation.remote() for shard in shards]
            incarnations = ray.get(waiting, timeout=asked.start_timeout_s)
            store = cls(spec, partition, shards, incarnations, asked.group_backend)
            store._form_group()
        except BaseException as error:
            for shard in shards:
                ray.kill(shard)
            if isinstance(error, GetTimeoutError):
                raise TimeoutError(
                    f"the {num_shards} shards did not start within {asked.start_timeout_s:g} s; "
                    f"is something else holding the cluster's resources?"
                ) from None
            raise
        return store

    @classmethod
    def restore(
        cls,
        uri: str,
        *,
        num_shards: int | None = None,
        device: str | None = None,
        name: str = "store",
        options: ShardOptions | None = None,
    ) -> RayStore:
        """The store that any store's `snapshot` wrote to `uri`, on any number of shards."""
        manifest = read_manifest(uri)
        spec = replace(manifest.spec, device=device or manifest.spec.device)
        count = num_shards or len(manifest.parts)
        store = cls.create(spec, num_shards=count, name=name, options=options)
        try:
            store._all("load", uri, manifest)
        except BaseException:
            store.close()
            raise
        return store

    def update_knn(self) -> KnnReport:
        """See `GraphStore.update_knn`."""
        began = time.perf_counter()
        report: KnnReport = self._together("update_knn", self._complete_puts())[0]
        return replace(report, seconds=time.perf_counter() - began)

    def refresh(self, fn: RefreshFn | None, *, round: int) -> Mapping[str, float]:
        """See `GraphStore.refresh`. `fn` is pickled by reference: the shards import its module."""
        numbers = self._together("solve", __version__, cloudpickle.dumps(fn), round)[0]
        began = time.perf_counter()
        # Shard 0 is the last: a round that it names can be read everywhere.
        first, *others = range(self.num_shards)
        self._get([self._request(shard, "write", "publish", round) for shard in others])
        self._get([self._request(first, "write", "publish", round)])
        return {**numbers, "seconds_publish": time.perf_counter() - began}

    def published(self) -> tuple[int, ...]:
        """See `GraphStore.published`."""
        rounds: tuple[int, ...] = self._get([self._request(0, "read", "published")])[0]
        return rounds

    def snapshot(self, uri: str) -> None:
        """See `GraphStore.snapshot`; every shard writes its own file, what is staged too."""
        version = new_version(uri)
        parts = self._all("save", uri, version, self._complete_puts())
        commit(uri, version, self.spec, self.partition.bounds, parts)

    def close(self) -> None:
        """Stop the shards; whatever no snapshot holds is gone."""
        for shard in self._shards:
            ray.kill(shard)

    # Requests

    def _write(self, method: str, node_ids: Tensor, *columns: Tensor | None) -> None:
        plan = route(self.partition, node_ids)
        order = node_ids.argsort()
        sent = [None if c is None else torch.split(c[order], plan.counts) for c in columns]
        requests = plan.requests()
        # Labels belong to no round; what does is told apart by put, and taken as a whole.
        is_put = method in ("put", "remove")
        stamp = ((uuid.uuid4().hex, len(requests)),) if is_put else ()
        lane = "put" if is_put else "write"
        self._get(
            [
                self._request(shard, lane, method, ids, *(s and s[shard] for s in sent), *stamp)
                for shard, ids in requests
            ]
        )

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
        replies = self._get(
            [self._request(shard, "read", method, ids, *args) for shard, ids in requests]
        )
        return {
            name: plan.restore(torch.cat([reply[name] for reply in replies])) for name in replies[0]
        }

    def _search(self, features: Tensor, k: int, round: int | None) -> tuple[Tensor, Tensor]:
        sent = ray.put(to_arrays(features))
        shards = range(self.num_shards)
        replies = self._get([self._request(s, "read", "search", sent, k, round) for s in shards])
        ids, distances = zip(*replies)
        return merge_topk(ids, distances, k)

    def _request(self, shard: int, lane: str, method: str, *args: Any) -> Any:
        """Send one call of a `Shard` method."""
        call = self._shards[shard].call.options(concurrency_group=lane)
        return call.remote(self._incarnations[shard], method, *to_arrays(args))

    def _all(self, method: str, *args: Any) -> list[Any]:
        """Call an actor method on all shards' write lanes."""
        return self._get(
            [
                getattr(shard, method).options(concurrency_group="write").remote(known, *args)
                for shard, known in zip(self._shards, self._incarnations)
            ]
        )

    def _together(self, method: str, *args: Any) -> list[Any]:
        """Call a collective method; after an error the shards meet anew."""
        try:
            return self._all(method, *args)
        except StoreLostError:
            raise
        except Exception:
            self._form_group()
            raise

    def _form_group(self) -> None:
        if self.num_shards == 1:
            return
        first = self._shards[0].open_rendezvous.remote(self._incarnations[0])
        (host, port) = self._get([first])[0]
        self._all("join", host, port, self._backend)

    def _get(self, refs: Sequence[Any]) -> list[Any]:
        """Replies in order.

        Raises:
            StoreLostError: A shard died, now or earlier.
            Exception: What a shard raised; rather its own error than that another one left.
        """
        try:
            return [to_tensors(reply) for reply in ray.get(list(refs))]
        except RayActorError as error:
            raise _lost(error) from None
        except RayTaskError:
            raise min(_errors(refs), key=_rank_of_error) from None


def _errors(refs: Sequence[Any]) -> list[BaseException]:
    """What went wrong. Waits for all, so that no shard is left at work."""
    errors: list[BaseException] = []
    for ref in refs:
        try:
            ray.get(ref)
        except RayTaskError as error:
            errors.append(error.cause)
        except RayActorError as error:
            errors.append(_lost(error))
    return errors


def _rank_of_error(error: BaseException) -> int:
    return 0 if isinstance(error, StoreLostError) else 2 if isinstance(error, PeerLostError) else 1


def _lost(error: RayActorError) -> StoreLostError:
    reason = str(error).strip().splitlines()[0]
    return StoreLostError(f"a shard of the store died ({reason}); restore it from a snapshot")


def _start_actor(
    spec: StoreSpec, partition: Partition, rank: int, name: str, options: ShardOptions
) -> Any:
    actor = ray.remote(concurrency_groups={"read": READ_THREADS, "write": 1, "put": 1})(ShardActor)
    return actor.options(
        name=f"{name}-shard-{rank}",
        num_cpus=options.cpus_per_shard,
        num_gpus=options.gpus_per_shard,
        max_restarts=-1,
        scheduling_strategy=options.scheduling_strategy,
    ).remote(spec, partition, rank, options.threads_per_shard)


def _check_resources(options: ShardOptions, num_shards: int) -> None:
    if not ray.is_initialized():
        ray.init()
    has = ray.cluster_resources()
    for kind, each in (("CPU", options.cpus_per_shard), ("GPU", options.gpus_per_shard)):
        if each * num_shards > has.get(kind, 0.0):
            raise ValueError(
                f"the store needs {each * num_shards:g} {kind}s ({num_shards} shards x {each:g}), "
                f"but the cluster has {has.get(kind, 0.0):g}; lower num_shards or "
                f"{kind.lower()}s_per_shard"
            )


def _memory_by_machine() -> dict[str, float]:
    """Bytes that Ray may lend on each machine."""
    return {
        node["NodeID"]: node["Resources"]["memory"]
        for node in ray.nodes()
        if node["Alive"] and "memory" in node["Resources"]
    }
