"""Room for a run: all of it or nothing, waited for without holding anything."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import pytest
from labelmesh.trainers import reservation
from labelmesh.trainers.placement import Placement
from labelmesh.trainers.reservation import Reservation, Room, reserve

from .waiting import until

pytestmark = pytest.mark.ray

ONE_CPU = {"CPU": 1.0}


def free_cpus() -> float:
    import ray

    return float(ray.available_resources().get("CPU", 0.0))


class Second:
    """A run that waits for its room in a thread; nothing of it is left for the tests after it."""

    def __init__(self, wanted: Room) -> None:
        self.told: list[dict[str, Any]] = []
        self.granted: list[Reservation] = []
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._wait, args=(wanted,))
        self._thread.start()

    def _wait(self, wanted: Room) -> None:
        with suppress(InterruptedError):
            self.granted.append(reserve(wanted, self._plan, self.told.append))

    def _plan(self) -> Placement:
        if self._given_up.is_set():
            raise InterruptedError
        return Placement()

    def __enter__(self) -> Second:
        return self

    def __exit__(self, *_: object) -> None:
        self._given_up.set()
        self._thread.join()
        for room in self.granted:
            room.close()


def test_two_runs_take_their_room_one_after_the_other(
    ray_local: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reservation, "_TRY_S", 3)
    monkeypatch.setattr(reservation, "_WAIT_S", 30)
    until(lambda: free_cpus() == 4.0)
    wanted = Room(shards=2, trainers=2, per_shard=ONE_CPU, per_trainer=ONE_CPU)
    first = reserve(wanted, Placement)
    with Second(wanted) as second:
        until(lambda: bool(second.told))
        assert second.told[0] == {"kind": "waiting", "shards": 2, "trainers": 2}
        # The first run's workers may start where its trainers' bundles were: the second holds
        # nothing.
        first.release_trainers()
        until(lambda: free_cpus() == 2.0)
        assert not second.granted
        first.close()
        until(lambda: bool(second.granted))
        until(lambda: free_cpus() == 0.0)
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
