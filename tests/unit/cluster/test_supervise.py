"""The driver's state machine, with fakes for attempts, cluster and clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from labelmesh.cluster.supervise import Clock, Policy, Room, Supervisor
from labelmesh.trainers.outcome import (
    Broke,
    Finished,
    Lost,
    Outcome,
    PausedAt,
    RunFailed,
    RunPaused,
)

Attempt = Callable[[int, Callable[[frozenset[str]], str | None]], Outcome]


class World:
    """A session, a cluster and a clock that do what a test says."""

    def __init__(self, *attempts: Attempt, room: int = 4) -> None:
        self.attempts, self.room = list(attempts), room
        self.now, self.sizes = 0.0, list[int]()
        self.events: list[dict[str, Any]] = []
        self.checkpoint: str | None = None
        self.leaving: frozenset[str] = frozenset()
        self.stop: str | None = None

    def attempt(
        self,
        num_workers: int,
        why_pause: Callable[[frozenset[str]], str | None],
    ) -> Outcome:
        self.sizes.append(num_workers)
        return self.attempts.pop(0)(num_workers, why_pause)

    def newest_checkpoint(self) -> str | None:
        return self.checkpoint

    holds_shards = False

    def close(self) -> None: ...

    def find_room(self, sizes: Sequence[int], held: int) -> Room | str:
        fitting = [n for n in sizes if n <= self.room]
        return Room(fitting[0]) if fitting else f"{self.room} of {sizes[-1]} CPUs"

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def run(
        self,
        *,
        sizes: Sequence[int] = (4, 2, 1),
        max_failures: int = 3,
        pause_at: str | None = None,
    ) -> None:
        Supervisor(
            self,
            Policy(sizes, max_failures, wait_for_room_s=60.0, pause_at=pause_at),
            find_room=self.find_room,
            leaving=lambda: self.leaving,
            stop_asked=lambda: self.stop,
            clock=Clock(lambda: self.now, self.sleep),
            on_event=self.events.append,
        ).run()

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]


def ends(outcome: Outcome) -> Attempt:
    return lambda num_workers, why_pause: outcome


def test_a_run_without_trouble_is_one_attempt() -> None:
    world = World(ends(Finished()))
    world.run()
    assert world.sizes == [4]
    assert world.kinds() == ["attempt"]


def test_after_a_loss_the_run_goes_on_with_the_workers_that_fit() -> None:
    world = World(lambda n, why: lose(world, room=3), ends(Finished()))
    world.run()
    assert world.sizes == [4, 2]
    assert world.now == pytest.approx(10.0)  # the moment in which more might have come back
    assert world.kinds() == ["attempt", "lost", "attempt"]


def test_a_lost_machine_that_comes_back_at_once_costs_no_workers() -> None:
    world = World(lambda n, why: lose(world, room=3), ends(Finished()))
    sleep = world.sleep

    def comes_back(seconds: float) -> None:
        sleep(seconds)
        world.room = 4

    world.sleep = comes_back  # type: ignore[method-assign]
    world.run()
    assert world.sizes == [4, 4]


def lose(world: World, *, room: int) -> Outcome:
    world.room = room
    return Lost("the machine has gone")


def test_losses_without_a_new_checkpoint_end_the_run() -> None:
    world = World(*[ends(Lost("killed"))] * 9)
    with pytest.raises(RunFailed, match=r"4 times in a row.*killed.*max_failures"):
        world.run(max_failures=3)
    assert len(world.sizes) == 4


def test_losses_with_progress_never_end_the_run() -> None:
    def progress(num_workers: int, why_pause: Any) -> Outcome:
        world.checkpoint = f"epoch-{len(world.sizes):04d}"
        return Lost("killed")

    world = World(*[progress] * 30, ends(Finished()))
    world.run(max_failures=1)
    assert len(world.sizes) == 31


def test_what_would_break_again_is_not_tried_again() -> None:
    world = World(ends(Broke("loss is nan at step 7")))
    with pytest.raises(RunFailed, match="loss is nan at step 7"):
        world.run()


def test_room_that_never_comes_is_waited_for_and_then_named() -> None:
    world = World(room=0)
    with pytest.raises(RunFailed, match=r"no room after 60 s: 0 of 1 CPUs"):
        world.run()
    assert world.kinds() == ["waiting"]


def test_a_machine_that_will_go_away_pauses_the_run_and_it_goes_on_elsewhere() -> None:
    def drained(num_workers: int, why_pause: Callable[[frozenset[str]], str | None]) -> Outcome:
        world.leaving = frozenset({"a"})
        assert why_pause(frozenset({"a", "b"})) is None  # not looked at yet
        world.now += 6
        assert why_pause(frozenset({"b"})) is None
        world.now += 6
        assert "1 machine of the run" in str(why_pause(frozenset({"a", "b"})))
        world.room = 2
        return PausedAt("epoch-0001-step-00000010")

    world = World(drained, ends(Finished()))
    world.run()
    assert world.sizes == [4, 2]
    assert world.kinds() == ["attempt", "paused", "attempt"]


HERE = frozenset({"a"})


def grows(num_workers: int, why_pause: Callable[[frozenset[str]], str | None], now: World) -> float:
    """Look every six seconds until the run is to pause; how long it took."""
    begun = now.now
    for _ in range(1000):
        now.now += 6
        reason = why_pause(HERE)
        if reason is not None:
            assert reason == "there is room for 4 workers"
            break
    return now.now - begun


def test_a_small_run_grows_when_there_is_room_at_two_looks() -> None:
    def small(num_workers: int, why_pause: Callable[[frozenset[str]], str | None]) -> Outcome:
        world.now += 6
        assert why_pause(HERE) is None
        for room in (4, 2):
            world.room, world.now = room, world.now + 6
            assert why_pause(HERE) is None
        world.room = 4
        assert grows(num_workers, why_pause, world) == 12
        return PausedAt("epoch-0000-step-00000010")

    world = World(small, ends(Finished()), room=2)
    world.run()
    assert world.sizes == [2, 4]


def test_room_that_an_attempt_is_about_to_take_is_not_room_to_grow() -> None:
    def starting(num_workers: int, why_pause: Callable[[frozenset[str]], str | None]) -> Outcome:
        world.room = 4
        for _ in range(9):
            world.now += 6
            assert why_pause(frozenset()) is None
        return Finished()

    world = World(starting, room=2)
    world.run()


def test_a_run_that_paused_to_grow_in_vain_stays_longer_each_time() -> None:
    stayed: list[float] = []

    def small(num_workers: int, why_pause: Callable[[frozenset[str]], str | None]) -> Outcome:
        world.room = 4
        stayed.append(grows(num_workers, why_pause, world))
        world.room = 4 if len(stayed) == 4 else 2
        return PausedAt("epoch-0000-step-00000010")

    world = World(*[small] * 4, ends(Finished()), room=2)
    world.run()
    assert world.sizes == [2, 2, 2, 2, 4]
    assert stayed == [12, 60, 120, 240]


def test_a_stop_by_the_user_leaves_a_paused_run() -> None:
    def stopped(num_workers: int, why_pause: Callable[[frozenset[str]], str | None]) -> Outcome:
        world.stop = "SIGTERM"
        assert why_pause(frozenset()) == "SIGTERM"
        return PausedAt("epoch-0002-step-00000030")

    world = World(stopped)
    with pytest.raises(RunPaused, match=r"SIGTERM: .*epoch-0002-step-00000030.*--resume"):
        world.run()


def test_a_stop_while_waiting_for_room_is_heard() -> None:
    world = World(room=0)
    world.stop = "SIGTERM"
    with pytest.raises(RunPaused, match="while the run waited for room"):
        world.run()


def test_a_run_that_is_wanted_no_further_pauses_there_and_not_before() -> None:
    def loses(num_workers: int, why_pause: Any) -> Outcome:
        world.checkpoint = "epoch-0001-step-00000020"
        return Lost("killed")

    def gets_there(num_workers: int, why_pause: Any) -> Outcome:
        world.checkpoint = "epoch-0002"
        return PausedAt("epoch-0002")

    world = World(loses, gets_there)
    with pytest.raises(RunPaused, match=r"epoch-0002, as train.pause_after asks.*--resume"):
        world.run(pause_at="epoch-0002")
    assert world.attempts == []
    with pytest.raises(RunPaused, match="epoch-0002"):  # it is there already
        world.run(pause_at="epoch-0002")
    assert len(world.sizes) == 2
