"""Room for a run: all of it or nothing, waited for without holding anything."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from labelmesh.trainers import reservation
from labelmesh.trainers.placement import Placement
from labelmesh.trainers.reservation import Room, reserve

from .waiting import until

pytestmark = pytest.mark.ray

ONE_CPU = {"CPU": 1.0}


def free_cpus() -> float:
    import ray

    return float(ray.available_resources().get("CPU", 0.0))


def test_two_runs_take_their_room_one_after_the_other(
    ray_local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reservation, "_TRY_S", 1)
    until(lambda: free_cpus() == 4.0)
    wanted = Room(shards=2, trainers=2, per_shard=ONE_CPU, per_trainer=ONE_CPU)
    first = reserve(wanted, Placement)
    told: list[dict[str, Any]] = []
    granted: list[reservation.Reservation] = []
    waiting = threading.Thread(
        target=lambda: granted.append(reserve(wanted, Placement, told.append)), daemon=True
    )
    waiting.start()
    until(lambda: bool(told))
    assert told[0] == {"kind": "waiting", "shards": 2, "trainers": 2}
    # The first run's workers may start where its trainers' bundles were: the second holds nothing.
    first.release_trainers()
    until(lambda: free_cpus() == 2.0)
    assert not granted
    first.close()
    waiting.join(60)
    (second,) = granted
    until(lambda: free_cpus() == 0.0)
    second.close()
    until(lambda: free_cpus() == 4.0)


def test_a_cluster_that_became_too_small_ends_the_waiting(ray_local: str) -> None:
    def refuse() -> Placement:
        raise ValueError("has 1 node")

    with pytest.raises(ValueError, match="has 1 node"):
        reserve(Room(0, 1, ONE_CPU, ONE_CPU), refuse)


def test_processes_that_ask_for_nothing_get_a_place(ray_local: str) -> None:
    nothing = reservation._bundle(0.0, 0.0)
    granted = reserve(Room(2, 1, nothing, nothing), Placement)
    assert granted.scaling == {"placement_strategy": "SPREAD", "label_selector": None}
    granted.close()
