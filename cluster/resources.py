"""What a run asks of a cluster, and whether it is there. No Ray."""

from __future__ import annotations

from dataclasses import dataclass

from ..trainers.config import RunSpec


@dataclass(frozen=True)
class Need:
    """Logical CPUs and GPUs of one kind of process."""

    what: str
    count: int
    cpus: float
    gpus: float


class ResourceError(ValueError):
    """The cluster is too small; the message says by how much and what to change."""


def needs(spec: RunSpec) -> tuple[Need, ...]:
    """Trainers, and shards where the method keeps a graph."""
    res = spec.resources
    trainers = Need("trainers", spec.train.num_workers, res.cpus_per_trainer, res.gpus_per_trainer)
    if not spec.method.uses_graph:
        return (trainers,)
    return (trainers, Need("shards", spec.graph.num_shards, res.cpus_per_shard, res.gpus_per_shard))


def check(spec: RunSpec, *, cpus: float, gpus: float) -> None:
    """Refuse a run that the cluster cannot hold.

    Raises:
        ResourceError: Names the resource, what is needed for what, and what there is.
    """
    for name, have, field in (("CPUs", cpus, "cpus"), ("GPUs", gpus, "gpus")):
        parts = needs(spec)
        total = sum(p.count * getattr(p, field) for p in parts)
        if total > have + 1e-9:
            detail = ", ".join(f"{p.count} {p.what} x {getattr(p, field):g}" for p in parts)
            raise ResourceError(
                f"the run needs {total:g} {name} ({detail}) but the cluster has {have:g}; lower "
                f"train.num_workers, graph.num_shards or resources.{field}_per_trainer"
            )
