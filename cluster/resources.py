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


def num_trainers(spec: RunSpec) -> tuple[int, int]:
    """The least and the most trainers of a run; the same number twice where it is fixed."""
    sizes = spec.train.world_sizes
    return sizes[-1], sizes[0]


def needs(spec: RunSpec) -> tuple[Need, ...]:
    """Trainers (the least that the run takes), and shards where the method keeps a graph."""
    res = spec.resources
    trainers = Need("trainers", num_trainers(spec)[0], res.cpus_per_trainer, res.gpus_per_trainer)
    if not spec.method.uses_graph:
        return (trainers,)
    return (trainers, Need("shards", spec.graph.num_shards, res.cpus_per_shard, res.gpus_per_shard))


def check(spec: RunSpec, *, cpus: float, gpus: float) -> None:
    """Refuse a run that the cluster cannot hold.

    Fractions of GPUs are packed as Ray packs them: shards first, then trainers, each into the
    fullest GPU that still has room. What does not fit that way would wait for ever.

    Raises:
        ResourceError: Names the resource, what is needed for what, and what there is.
    """
    parts = needs(spec)
    for name, have, field in (("CPUs", cpus, "cpus"), ("GPUs", gpus, "gpus")):
        total = sum(p.count * getattr(p, field) for p in parts)
        detail = ", ".join(f"{p.count} {p.what} x {getattr(p, field):g}" for p in parts)
        if total > have + 1e-9:
            raise ResourceError(
                f"the run needs {total:g} {name} ({detail}) but the cluster has {have:g}; lower "
                f"train.num_workers, graph.num_shards or resources.{field}_per_trainer"
            )
    if not _packs([p.gpus for p in reversed(parts) for _ in range(p.count)], int(gpus)):
        raise ResourceError(
            f"{detail} do not fit on {gpus:g} GPUs one by one, though their sum does; let a shard "
            "take more than half a GPU and a trainer the rest: resources.gpus_per_shard = 0.6, "
            "gpus_per_trainer = 0.4"
        )


def _packs(wanted: list[float], num_gpus: int) -> bool:
    """Whether fractions go on whole GPUs when each takes the fullest one with room for it."""
    free = [1.0] * num_gpus
    for share in wanted:
        if share <= 0:
            continue
        if share >= 1:
            empty = [i for i, room in enumerate(free) if room == 1.0][: round(share)]
            if len(empty) < round(share):
                return False
            for i in empty:
                free[i] = 0.0
            continue
        fitting = [i for i, room in enumerate(free) if room >= share - 1e-9]
        if not fitting:
            return False
        fullest = min(fitting, key=lambda i: free[i])
        free[fullest] -= share
    return True
