"""The driver of a run: supervisor, signals, and what Ray says of the cluster."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from ..trainers.checkpoint import Position
from ..trainers.config import RunSpec, TrainSpec
from ..trainers.launch import open_session
from ..trainers.outcome import RunPaused
from ..trainers.placement import MakePlacement, Placement
from ..trainers.prepare import Prepared
from ..trainers.run_dir import RunDir
from .supervise import Clock, FindRoom, Policy, Room, Supervisor

OnEvent = Callable[[dict[str, Any]], None]


def drive(spec: RunSpec, run: RunDir, prepared: Prepared, *, on_event: OnEvent) -> None:
    """Run what `prepare` let through to the end, through losses and pauses.

    SIGTERM (`labelmesh stop`, a preempted head node) makes a checkpoint first; a second one ends
    the process at once.

    Raises:
        RunFailed: The run broke; the run directory holds its last checkpoint.
        RunPaused: It was stopped and can be resumed.
    """
    with stop_signal() as stop_asked:
        find_room: FindRoom = _one_process
        leaving: Callable[[], frozenset[str]] = frozenset
        plan: MakePlacement = Placement
        if spec.train.engine == "deepspeed":
            from .room import ClusterRoom

            cluster = ClusterRoom(
                spec,
                holds_shards=lambda: session.holds_shards,
                before_plan=lambda: _raise_if(stop_asked()),
            )
            find_room, leaving, plan = cluster.find, cluster.leaving, cluster.plan
        session = open_session(spec, run, prepared, make_placement=plan, on_event=on_event)
        train = spec.train
        try:
            Supervisor(
                session,
                Policy(
                    train.world_sizes, train.max_failures, train.wait_for_room_s, _pause_at(train)
                ),
                find_room=find_room,
                leaving=leaving,
                stop_asked=stop_asked,
                clock=Clock(time.monotonic, time.sleep),
                on_event=on_event,
            ).run()
        finally:
            session.close()


def _pause_at(train: TrainSpec) -> str | None:
    """The checkpoint of `train.pause_after`; None where the run goes to its end."""
    if train.pause_after is None or train.pause_after >= train.epochs:
        return None
    return Position(train.pause_after, step=0, world_size=1).name


def _raise_if(reason: str | None) -> None:
    if reason is not None:
        raise RunPaused(f"{reason} while the run waited for room; resume it with --resume")


def _one_process(sizes: Sequence[int], held: int) -> Room:
    return Room(sizes[0])


@contextmanager
def stop_signal() -> Iterator[Callable[[], str | None]]:
    """Within it, SIGTERM asks for a stop instead of ending the process; main thread only."""
    asked: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return

    def stop(number: int, frame: FrameType | None) -> None:
        if asked:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        asked.append("stopped by SIGTERM")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield lambda: asked[0] if asked else None
    finally:
        signal.signal(signal.SIGTERM, before)
