"""What a driver does about a run: attempt after attempt, until it is finished, paused or given up.

A state machine with injected policies and clock. No Ray: the session makes the attempts,
`find_room` looks at the cluster.

    starting -> room found -> attempt -> finished
                  ^              |-> paused (room changes, a machine goes away) -> room ...
                  |              |-> paused because the user stops the run       -> RunPaused
                  |              |-> lost (a process or machine went away)       -> room ...
                  |              '-> broke (the run's own fault)                 -> RunFailed
                  '- waits while there is too little
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..trainers.launch import Session
from ..trainers.outcome import Broke, Finished, Lost, Outcome, PausedAt, RunFailed, RunPaused

OnEvent = Callable[[dict[str, Any]], None]

# Between two looks at the cluster while an attempt goes on, in seconds.
_LOOK_EVERY_S = 5.0
# A run that paused to grow, and did not, stays as it is for so long; twice as long each time.
_STAY_S = 60.0
# How long a smaller world waits for the most that was asked for, when something was just lost.
_SETTLE_S = 10.0
_POLL_S = 1.0


@dataclass(frozen=True)
class Room:
    """So many workers fit now."""

    num_workers: int


FindRoom = Callable[[Sequence[int], int], Room | str]


@dataclass(frozen=True)
class Policy:
    """When to give up.

    Attributes:
        sizes: Numbers of workers that the run may have, largest first.
        max_failures: Losses in a row without a new checkpoint.
        wait_for_room_s: How long to wait for the least that the run needs.
        pause_at: Name of the checkpoint at which the run is to stop for now.
    """

    sizes: Sequence[int]
    max_failures: int
    wait_for_room_s: float
    pause_at: str | None = None


@dataclass
class Clock:
    """Time and waiting; tests give fakes."""

    now: Callable[[], float]
    sleep: Callable[[float], None]


class Supervisor:
    """Drives one run.

    Args:
        find_room: From the allowed numbers of workers to the largest that fits now, or a sentence
            that says with numbers what is missing. Its second argument is the number of workers
            that the run has at present, and keeps.
        leaving: Nodes that are about to go away.
        stop_asked: Why the user wants the run to stop, or None.
    """

    def __init__(
        self,
        session: Session,
        policy: Policy,
        *,
        find_room: FindRoom,
        leaving: Callable[[], frozenset[str]],
        stop_asked: Callable[[], str | None],
        clock: Clock,
        on_event: OnEvent,
    ) -> None:
        self._session, self._policy = session, policy
        self._find_room, self._leaving, self._stop_asked = find_room, leaving, stop_asked
        self._clock, self._on_event = clock, on_event
        self._failures = 0
        self._attempts = 0
        self._room: Room | None = None
        self._next_look = 0.0
        self._growth = _Growth()

    def run(self) -> None:
        """Attempt until the run is finished.

        Raises:
            RunFailed: It broke, or lost processes too often, or found no room.
            RunPaused: The user stopped it, or wanted it no further; its checkpoint is there.
        """
        while True:
            self._raise_if_far_enough(self._session.newest_checkpoint())
            room = self._wait_for_room()
            before = self._session.newest_checkpoint()
            outcome = self._attempt(room, before)
            if isinstance(outcome, Finished):
                return
            self._judge(outcome, before)

    def _attempt(self, room: Room, resume_from: str | None) -> Outcome:
        self._room = room
        self._attempts += 1
        self._next_look = self._clock.now() + _LOOK_EVERY_S
        self._growth.begin(room.num_workers, self._clock.now())
        self._on_event(
            {
                "kind": "attempt",
                "number": self._attempts,
                "workers": room.num_workers,
                "resumed_from": resume_from,
            }
        )
        return self._session.attempt(room.num_workers, self._why_pause)

    def _judge(self, outcome: Outcome, before: str | None) -> None:
        """Return where another attempt is to follow."""
        if isinstance(outcome, PausedAt):
            self._on_event({"kind": "paused", "checkpoint": outcome.checkpoint})
            reason = self._stop_asked()
            if reason is not None:
                raise RunPaused(
                    f"{reason}: the run has paused at checkpoint {outcome.checkpoint}; the same "
                    f"command with --resume goes on from there"
                )
            self._failures = 0
            return
        if isinstance(outcome, Broke):
            raise RunFailed(outcome.reason)
        assert isinstance(outcome, Lost)
        progressed = self._session.newest_checkpoint() != before
        self._failures = 1 if progressed else self._failures + 1
        self._on_event({"kind": "lost", "reason": outcome.reason, "failures": self._failures})
        reason = self._stop_asked()
        if reason is not None:
            raise RunPaused(
                f"{reason}, and processes of the run were lost before it could pause "
                f"({outcome.reason}); the same command with --resume goes on from the last "
                f"checkpoint"
            )
        if self._failures > self._policy.max_failures:
            raise RunFailed(
                f"processes or machines were lost {self._failures} times in a row without a new "
                f"checkpoint, the last time: {outcome.reason}; raise train.max_failures, or make "
                f"checkpoints more often (train.checkpoint_every_steps)"
            )

    def _raise_if_far_enough(self, newest: str | None) -> None:
        end = self._policy.pause_at
        if end is not None and newest is not None and newest >= end:  # names sort by age
            raise RunPaused(
                f"the run has paused at checkpoint {newest}, as train.pause_after asks; raise it "
                f"or leave it out, and --resume goes on from there"
            )

    def _wait_for_room(self) -> Room:
        """The most workers that fit; a smaller number than asked for only after a moment."""
        sizes, begun, told = tuple(self._policy.sizes), self._clock.now(), None
        while True:
            found = self._find_room(sizes, 0)
            waited = self._clock.now() - begun
            if isinstance(found, Room):
                is_settled = self._attempts == 0 or waited >= _SETTLE_S
                if found.num_workers == sizes[0] or is_settled:
                    return found
            elif waited >= self._policy.wait_for_room_s:
                raise RunFailed(f"no room after {waited:.0f} s: {found}")
            elif found != told:
                told = found
                self._on_event({"kind": "waiting", "reason": found})
            reason = self._stop_asked()
            if reason is not None:
                raise RunPaused(
                    f"{reason} while the run waited for room; the same command with --resume goes "
                    f"on from the last checkpoint"
                )
            self._clock.sleep(_POLL_S)

    def _why_pause(self, nodes: frozenset[str]) -> str | None:
        """Asked while an attempt goes on, with the nodes that it uses; none before it has begun."""
        reason = self._stop_asked()
        if reason is not None:
            return reason
        now = self._clock.now()
        if now < self._next_look:
            return None
        self._next_look = now + _LOOK_EVERY_S
        gone = nodes & self._leaving()
        if gone:
            return f"{len(gone)} machine{'s' if len(gone) > 1 else ''} of the run will go away"
        # Before its workers are there, what the attempt is about to take looks free.
        larger = self._larger_room() if nodes else None
        if self._growth.is_due(larger, now):
            return f"there is room for {larger} workers"
        return None

    def _larger_room(self) -> int | None:
        assert self._room is not None
        larger = tuple(n for n in self._policy.sizes if n > self._room.num_workers)
        found = self._find_room(larger, self._room.num_workers) if larger else ""
        return found.num_workers if isinstance(found, Room) else None


class _Growth:
    """Whether a run should pause to grow: a pause costs a start, and what is free may be taken."""

    def __init__(self) -> None:
        self._num_workers = 0
        self._paused_with: int | None = None
        self._stay_s = _STAY_S
        self._not_before = 0.0
        self._seen = False

    def begin(self, num_workers: int, now: float) -> None:
        """An attempt begins."""
        if self._paused_with is not None and num_workers <= self._paused_with:
            self._not_before = now + self._stay_s
            self._stay_s *= 2
        elif self._paused_with is not None:
            self._stay_s = _STAY_S
        self._num_workers, self._paused_with, self._seen = num_workers, None, False

    def is_due(self, room: int | None, now: float) -> bool:
        """Room for more has been there at two looks in a row, and was not in vain a moment ago."""
        seen_before, self._seen = self._seen, room is not None
        if not (seen_before and self._seen) or now < self._not_before:
            return False
        self._paused_with = self._num_workers
        return True
