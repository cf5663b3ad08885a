"""What a shard asks of Ray, and how it gets it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

import ray
from ray.exceptions import GetTimeoutError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from .actors import READ_THREADS, ShardActor
from .partition import Partition
from .shard_link import ShardLink
from .store import StoreSpec


@dataclass(frozen=True)
class ShardOptions:
    """What one shard asks of Ray.

    Attributes:
        threads_per_shard: None: the machine's cores by the number of shards, at least 1.
        scheduling_strategy: Ray's: "DEFAULT", "SPREAD" or a placement group's.
        node_ids: Ray's name of the node where each shard should be; another one where that has no
            room. None: as `scheduling_strategy` says.
        start_timeout_s: How long to wait until all shards run.
        recovery_timeout_s: How long a call waits for a shard that died, where there is a log.
        group_backend: How shards talk: "gloo", also between GPUs, as counts and ids mostly lie on
            the CPU and it notices a lost shard; "nccl" only where every shard has a GPU of its own.
    """

    cpus_per_shard: float = 0.5
    gpus_per_shard: float = 0.0
    threads_per_shard: int | None = None
    scheduling_strategy: Any = "DEFAULT"
    node_ids: tuple[str, ...] | None = None
    start_timeout_s: float = 300.0
    recovery_timeout_s: float = 300.0
    group_backend: Literal["gloo", "nccl"] = "gloo"


def check_resources(options: ShardOptions, num_shards: int) -> None:
    """Raises ValueError where the shards ask for more than the cluster has."""
    if not ray.is_initialized():
        # Joins the cluster of RAY_ADDRESS, or starts one: with a token, and nothing that listens.
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        starts_one = not os.environ.get("RAY_ADDRESS")
        ray.init(**({"include_dashboard": False} if starts_one else {}))
    if options.node_ids is not None and len(options.node_ids) != num_shards:
        raise ValueError(
            f"node_ids names {len(options.node_ids)} nodes, but there are {num_shards} shards; "
            f"name one node for each shard"
        )
    has = ray.cluster_resources()
    for kind, each in (("CPU", options.cpus_per_shard), ("GPU", options.gpus_per_shard)):
        if each * num_shards > has.get(kind, 0.0):
            raise ValueError(
                f"the store needs {each * num_shards:g} {kind}s ({num_shards} shards x {each:g}), "
                f"but the cluster has {has.get(kind, 0.0):g}; lower num_shards or "
                f"{kind.lower()}s_per_shard"
            )


def memory_by_machine() -> dict[str, float]:
    """Bytes that Ray may lend on each machine."""
    return {
        node["NodeID"]: node["Resources"]["memory"]
        for node in ray.nodes()
        if node["Alive"] and "memory" in node["Resources"]
    }


def start_shards(
    spec: StoreSpec, partition: Partition, lineage: str, log_uri: str | None, options: ShardOptions
) -> ShardLink:
    """Start all shards and wait until they run.

    Raises:
        TimeoutError: They do not.
    """
    actors = [
        _start(spec, partition, rank, lineage, log_uri, options)
        for rank in range(partition.num_shards)
    ]
    link = ShardLink(
        actors,
        is_logged=log_uri is not None,
        recovery_timeout_s=options.recovery_timeout_s,
        backend=options.group_backend,
    )
    try:
        ray.get([actor.status.remote() for actor in actors], timeout=options.start_timeout_s)
        link.find()
    except BaseException as error:
        for actor in actors:
            ray.kill(actor)
        if isinstance(error, GetTimeoutError):
            raise TimeoutError(
                f"the {len(actors)} shards did not start within {options.start_timeout_s:g} s; "
                f"is something else holding the cluster's resources?"
            ) from None
        raise
    return link


def _start(
    spec: StoreSpec,
    partition: Partition,
    rank: int,
    lineage: str,
    log_uri: str | None,
    options: ShardOptions,
) -> Any:
    actor = ray.remote(concurrency_groups={"read": READ_THREADS, "write": 1, "put": 1})(ShardActor)
    strategy = options.scheduling_strategy
    if options.node_ids is not None:
        strategy = NodeAffinitySchedulingStrategy(options.node_ids[rank], soft=True)
    return actor.options(
        name=f"{lineage}-shard-{rank}",
        num_cpus=options.cpus_per_shard,
        num_gpus=options.gpus_per_shard,
        max_restarts=-1,
        scheduling_strategy=strategy,
    ).remote(spec, partition, rank, options.threads_per_shard, lineage, log_uri)
