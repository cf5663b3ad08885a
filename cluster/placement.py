"""Which node holds which shards and trainers of a run. Pure: nodes and needs in, a plan out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ..trainers.config import RunSpec
from ..trainers.placement import Placement
from .resources import Need, ResourceError, check, needs

_ROUNDING = 1e-6


@dataclass(frozen=True)
class Node:
    """One machine of a cluster: what Ray may lend on it, or what of that is free."""

    node_id: str
    cpus: float
    gpus: float


@dataclass
class _Room:
    """What is left of a node while a plan is made. GPUs are kept one by one: a process that wants
    a share gets it from a single GPU, the fullest one that has room, as Ray does it."""

    node: Node
    cpus: float = 0.0
    gpus: list[float] = field(default_factory=list)
    shards: int = 0
    trainers: int = 0

    def __post_init__(self) -> None:
        self.cpus = self.node.cpus
        whole = int(self.node.gpus + _ROUNDING)
        part = self.node.gpus - whole
        self.gpus = [1.0] * whole + ([part] if part > _ROUNDING else [])

    def take(self, need: Need) -> bool:
        """Put one more process here; False, and nothing is taken, if it does not fit."""
        if need.cpus > self.cpus + _ROUNDING:
            return False
        places = self._gpus_for(need.gpus)
        if places is None:
            return False
        self.cpus -= need.cpus
        for place in places:
            self.gpus[place] -= min(need.gpus, 1.0)
        return True

    def _gpus_for(self, share: float) -> list[int] | None:
        if share <= 0:
            return []
        if share >= 1:
            empty = [i for i, free in enumerate(self.gpus) if free >= 1 - _ROUNDING]
            return empty[: round(share)] if len(empty) >= round(share) else None
        fitting = [i for i, free in enumerate(self.gpus) if free >= share - _ROUNDING]
        return [min(fitting, key=lambda i: self.gpus[i])] if fitting else None


def plan_placement(
    nodes: Sequence[Node],
    trainers: Need,
    shards: Need | None,
    *,
    strategy: Literal["spread", "pack"] = "spread",
) -> Placement:
    """Spread trainers and shards evenly over nodes; a shard goes where a trainer is.

    Node ids of the graph are cut into contiguous ranges, one per shard, and trainers extract
    features in turn, whichever shard they belong to: every trainer feeds every shard alike. So it
    does not matter which shard lies beside which trainer, only that all nodes that feed also hold
    their part of what is fed: shards are balanced over the nodes that hold trainers.

    "spread" takes as many nodes as there are trainers, "pack" as few as hold all. Shards that fit
    beside no trainer (a node of GPUs that is short of cores) go to nodes without one.

    Raises:
        ResourceError: The processes do not fit: says what one node can hold of what is asked.
    """
    able = [node for node in nodes if _Room(node).take(trainers)]
    able.sort(key=lambda node: (-node.gpus, -node.cpus, node.node_id))
    counts = range(1, min(len(able), trainers.count) + 1)
    for count in counts if strategy == "pack" else reversed(counts):
        rooms = [_Room(node) for node in able[:count]]
        fits = _fill(rooms, shards, "shards") and _fill(rooms, trainers, "trainers")
        if fits and all(room.trainers for room in rooms if room.shards):
            return _placement(rooms, nodes, strategy)
    apart = [_Room(node) for node in nodes]
    if _fill(apart, trainers, "trainers") and _fill(apart, shards, "shards"):
        return _placement(apart, nodes, strategy)
    raise ResourceError(_refusal(nodes, trainers, shards))


def _fill(rooms: list[_Room], need: Need | None, what: Literal["shards", "trainers"]) -> bool:
    """Place processes one by one, each on the node that has the fewest of its kind."""
    for _ in range(need.count if need is not None else 0):
        assert need is not None
        order = sorted(rooms, key=lambda room: getattr(room, what))
        room = next((room for room in order if room.take(need)), None)
        if room is None:
            return False
        setattr(room, what, getattr(room, what) + 1)
    return True


def plan_run(
    spec: RunSpec,
    *,
    total: Sequence[Node],
    free: Sequence[Node] = (),
    maximum: tuple[float, float] | None = None,
) -> Placement:
    """Where a run goes: on what is free if it fits there, else where it will fit in time.

    An elastic run is planned for as many trainers as find room, and for the least at least.

    Args:
        total: What the nodes have when nothing else runs.
        free: What of it is free.
        maximum: CPUs and GPUs that the cluster may grow to, where it scales by itself.

    Raises:
        ResourceError: The run would wait for ever.
    """
    cpus, gpus = sum(node.cpus for node in total), sum(node.gpus for node in total)
    if maximum is not None:
        cpus, gpus = max(cpus, maximum[0]), max(gpus, maximum[1])
    check(spec, cpus=cpus, gpus=gpus)
    trainers, shards = needs(spec)[0], needs(spec)[1] if spec.method.uses_graph else None
    for nodes in (free, total):
        for count in spec.train.world_sizes:
            try:
                wanted = replace(trainers, count=count)
                return plan_placement(nodes, wanted, shards, strategy=spec.resources.placement)
            except ResourceError as error:
                refusal = error
    if maximum is not None:
        # Nodes that are not there yet cannot be named; the groups' wait makes them come.
        return Placement(strategy="PACK")
    raise refusal


def _placement(
    rooms: Sequence[_Room], nodes: Sequence[Node], strategy: Literal["spread", "pack"]
) -> Placement:
    used = {room.node.node_id for room in rooms if room.shards or room.trainers}
    return Placement(
        trainers=tuple(room.node.node_id for room in rooms for _ in range(room.trainers)),
        shards=tuple(room.node.node_id for room in rooms for _ in range(room.shards)),
        others=tuple(sorted(node.node_id for node in nodes if node.node_id not in used)),
        strategy="SPREAD" if strategy == "spread" else "PACK",
    )


def _refusal(nodes: Sequence[Node], trainers: Need, shards: Need | None) -> str:
    parts = [trainers] if shards is None else [trainers, shards]
    asked = " and ".join(
        f"{part.count} {part.what} of {part.cpus:g} CPUs and {part.gpus:g} GPUs each"
        for part in parts
    )
    offered = ", ".join(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in _largest(nodes))
    rest = f" (and {len(nodes) - _SHOWN} more)" if len(nodes) > _SHOWN else ""
    return (
        f"the run needs {asked}; they fit into the cluster's sum but not into its {len(nodes)} "
        f"nodes one by one, which offer {offered}{rest}; lower resources.cpus_per_trainer, "
        "gpus_per_trainer, cpus_per_shard or gpus_per_shard, or take more and smaller processes"
    )


_SHOWN = 4


def _largest(nodes: Sequence[Node]) -> list[Node]:
    return sorted(nodes, key=lambda node: (-node.gpus, -node.cpus))[:_SHOWN]
