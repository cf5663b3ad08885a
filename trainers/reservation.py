"""Room for a run on a Ray cluster: taken as a whole or not at all.

A run holds its shards for as long as it lives, while its trainers come and go: Ray Train makes a
placement group of its own each time that it starts workers, and takes none that is there already.
Were the shards placed first and the trainers later, two runs could each hold shards and wait for
ever for the room that the other one's shards take. So `reserve` asks for two placement groups at
once, one with a bundle per shard and one with a bundle per trainer, and keeps them only if both
are granted; otherwise it gives back what it has and waits, holding nothing, in a single group of
all bundles, which Ray grants as a whole. The trainers' group is given up at the moment when Ray
Train asks for the same bundles again.

Why two runs cannot block each other then, also when their workers restart: whenever a run was let
in, its trainers fitted beside the shards of all runs that were there. So of any number of runs
that hold only shards, the one that was let in last can start.

Shards and trainers are kept to the nodes of one plan (`Placement`), spread evenly by Ray: each
shard has trainers on its own node. The bundles of a lost node are placed again by Ray, on the
plan's other nodes or on a node that joins later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray._private.state import state
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from .config import RunSpec
from .placement import MakePlacement, Placement

# Whole seconds: Ray cuts off fractions.
_TRY_S = 5
_WAIT_S = 60
_LEAST_CPU = 0.001


@dataclass(frozen=True)
class Room:
    """What a run asks for. `trainers` is the least number that it can start with."""

    shards: int
    trainers: int
    per_shard: Mapping[str, float]
    per_trainer: Mapping[str, float]


@dataclass
class Reservation:
    """Room that was granted; `close` gives all of it back."""

    placement: Placement
    _shards: PlacementGroup | None
    _trainers: PlacementGroup | None = field(default=None)

    @property
    def shard_strategy(self) -> Any:
        """Ray's scheduling strategy of the shards."""
        if self._shards is None:
            return "DEFAULT"
        return PlacementGroupSchedulingStrategy(self._shards)

    @property
    def scaling(self) -> dict[str, Any]:
        """What `ray.train.ScalingConfig` is told, so that workers go where the plan wants them."""
        return {
            "placement_strategy": self.placement.strategy,
            "label_selector": self.placement.selector or None,
        }

    def release_trainers(self) -> None:
        """Give up the trainers' room; call it just before Ray Train asks for it."""
        if self._trainers is not None:
            remove_placement_group(self._trainers)
            self._trainers = None

    def close(self) -> None:
        """Give everything back; whatever still runs in the shards' group is ended."""
        self.release_trainers()
        if self._shards is not None:
            remove_placement_group(self._shards)
            self._shards = None


def room(spec: RunSpec, *, trainers: int) -> Room:
    """What a run asks for, with so many trainers at least."""
    res = spec.resources
    return Room(
        shards=spec.graph.num_shards if spec.method.uses_graph else 0,
        trainers=trainers,
        per_shard=_bundle(res.cpus_per_shard, res.gpus_per_shard),
        per_trainer=_bundle(res.cpus_per_trainer, res.gpus_per_trainer),
    )


def reserve(
    wanted: Room,
    make_placement: MakePlacement,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> Reservation:
    """Wait until the cluster has room for the whole run, and take it.

    Args:
        make_placement: Plans on what is free at the time of the call; called before every try.
            What it raises (the cluster has become too small) ends the waiting.
        on_event: Told `{"kind": "waiting", ...}` each time that there was no room.
    """
    shards = [dict(wanted.per_shard)] * wanted.shards
    trainers = [dict(wanted.per_trainer)] * wanted.trainers
    while True:
        placement = make_placement()
        parts = [_ask(bundles, placement) for bundles in (shards, trainers) if bundles]
        if all(group.wait(_TRY_S) for group in parts):
            return Reservation(placement, parts[0] if shards else None, parts[-1])
        _give_back(parts)
        on_event({"kind": "waiting", "shards": wanted.shards, "trainers": wanted.trainers})
        whole = _ask(shards + trainers, placement)
        whole.wait(_WAIT_S)
        _give_back([whole])


def remove_orphans() -> None:
    """Remove the placement groups of this job whose makers, actors of it, have died.

    Ray keeps them until the job ends: those of a sweep's trial that was killed, and those of Ray
    Train where its controller was.
    """
    job = bytes.fromhex(ray.get_runtime_context().get_job_id())
    for raw in state._connect_and_get_accessor().get_placement_group_table():
        group = gcs_pb2.PlacementGroupTableData.FromString(raw)
        if group.creator_job_id == job and _is_orphan(group):
            group_id = ray.PlacementGroupID(group.placement_group_id)
            remove_placement_group(PlacementGroup(group_id))


def _is_orphan(group: Any) -> bool:
    """Whether a group is still there whose maker was an actor, and is dead; of Ray's record."""
    made_by_actor = group.creator_actor_id.strip(b"\xff") != b""
    is_there = group.state != gcs_pb2.PlacementGroupTableData.REMOVED
    return made_by_actor and bool(group.creator_actor_dead) and is_there and not group.is_detached


def _ask(bundles: Sequence[Mapping[str, float]], placement: Placement) -> PlacementGroup:
    selector = placement.selector
    return placement_group(
        list(bundles),
        strategy=placement.strategy,
        bundle_label_selector=[selector] * len(bundles) if selector else None,
    )


def _give_back(groups: Sequence[PlacementGroup]) -> None:
    for group in groups:
        remove_placement_group(group)


def _bundle(cpus: float, gpus: float) -> dict[str, float]:
    """One process's part. Ray knows no empty bundles, so what asks for nothing asks for a crumb."""
    wanted = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount > 0}
    return wanted or {"CPU": _LEAST_CPU}
