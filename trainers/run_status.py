"""What a run is doing: from the driver's events to one small record. A pure state machine.

    starting -> baseline -> warm-up -> round <-> training -> finishing -> finished
                   any of them -> pausing -> paused | waiting | restarting -> ... | failed | stopped

The driver writes the record into the run's directory (`heartbeat.py`); whoever reads it knows from
its age whether the driver is still there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from .scalars import WARM_UP

Event = Mapping[str, Any]

# States after which nothing more comes from this driver.
ENDS = frozenset({"finished", "failed", "paused", "stopped"})


@dataclass(frozen=True)
class Pace:
    """The mean speed of a run's steps since some moment."""

    since: float
    at_step: int

    def seconds_left(self, now: float, step: int, num_steps: int) -> float | None:
        """Time to the last step at the mean speed so far; None before two steps were seen."""
        if step <= self.at_step:
            return None
        return (now - self.since) * max(0, num_steps - step) / (step - self.at_step)


@dataclass(frozen=True)
class RunStatus:
    """A run at a moment. JSON as it is.

    Attributes:
        started_at: Seconds since 1970, like all times here; of the run's first driver.
        updated_at: When the driver wrote this.
        heartbeat_s: How often it does.
        state: See the module; `reason` says why where that is not plain.
        restarts: How often the run went on from a checkpoint, or from the start.
        losses: How often processes or machines were lost.
        epoch: The epoch that is going on, from 0; `phase` and `phase_step` are of it.
        trainers, shards: Where they run, by rank.
        waiting_puts: Writes that no update of the graph has taken yet, by shard.
        resume: The command that goes on with the run.
    """

    name: str
    method: str
    started_at: float
    updated_at: float = 0.0
    heartbeat_s: float = 5.0
    host: str = ""
    pid: int = 0
    state: str = "starting"
    reason: str | None = None
    restarts: int = 0
    losses: int = 0
    round: int | None = None
    stage: str | None = None
    epoch: int | None = None
    epochs: int | None = None
    phase: str | None = None
    phase_step: int | None = None
    phase_steps: int | None = None
    step: int | None = None
    num_steps: int | None = None
    num_nodes: int | None = None
    loss: float | None = None
    samples_per_s: float | None = None
    searched_share: float | None = None
    recall: float | None = None
    coverage: float | None = None
    pseudo_accuracy: float | None = None
    val_accuracy: float | None = None
    test_accuracy: float | None = None
    checkpoint: str | None = None
    checkpoint_at: float | None = None
    num_workers: int | None = None
    num_shards: int | None = None
    trainers: Mapping[str, str] = field(default_factory=dict)
    shards: Mapping[str, str] = field(default_factory=dict)
    waiting_puts: Mapping[str, int] = field(default_factory=dict)
    resume: str | None = None
    pace: Pace | None = None

    @property
    def progress(self) -> float | None:
        """Share of the run's steps that are done."""
        if self.state == "finished":
            return 1.0
        if self.step is None or not self.num_steps:
            return None
        return min(1.0, self.step / self.num_steps)

    @property
    def is_over(self) -> bool:
        return self.state in ENDS

    def seconds_left(self, now: float) -> float | None:
        """Estimate of the time to the last step; None where nothing is known or nothing goes on."""
        is_moving = self.state in {"training", "round", "warm-up", "finishing"}
        if not is_moving or self.pace is None or self.step is None or self.num_steps is None:
            return None
        return self.pace.seconds_left(now, self.step, self.num_steps)

    def silent_s(self, now: float) -> float | None:
        """How long a driver that should be at work has not been heard of; None while it is there.

        Clocks of two machines may differ by some seconds, and a storage may be slow: a driver is
        missed after a minute, or six of its heartbeats.
        """
        age = now - self.updated_at
        return None if self.is_over or age <= max(60.0, 6 * self.heartbeat_s) else age

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def from_json(raw: Mapping[str, Any]) -> RunStatus:
    """The record that another version may have written: keys that are not known are left out."""
    known = {entry.name for entry in fields(RunStatus)}
    values = {key: value for key, value in raw.items() if key in known}
    if values.get("pace") is not None:
        values["pace"] = Pace(**values["pace"])
    return RunStatus(**values)


def begin_again(status: RunStatus, before: RunStatus) -> RunStatus:
    """The status of a run that another driver began."""
    return replace(
        status,
        started_at=before.started_at,
        restarts=before.restarts + 1,
        losses=before.losses,
        checkpoint=before.checkpoint,
        checkpoint_at=before.checkpoint_at,
    )


def advance(status: RunStatus, event: Event, now: float) -> RunStatus:
    """The status after an event; one of a kind that is not known changes nothing."""
    step = _STEPS.get(str(event.get("kind")))
    return status if step is None else step(status, event, now)


def _start(status: RunStatus, event: Event, now: float) -> RunStatus:
    keys = ("epochs", "num_steps", "num_nodes")
    totals: dict[str, Any] = {key: int(event[key]) for key in keys if key in event}
    return replace(status, state="training", reason=None, pace=None, stage=None, **totals)


def _train(status: RunStatus, event: Event, now: float) -> RunStatus:
    loss, speed = event.get("loss"), event.get("samples_per_s")
    if event.get("baseline"):
        return replace(status, state="baseline", loss=loss, samples_per_s=speed)
    step = int(event["step"])
    # After a restart from a checkpoint steps come again.
    is_first = status.pace is None or step < status.pace.at_step
    return replace(
        status,
        state="warm-up" if event.get("phase") == WARM_UP else "training",
        stage=None,
        epoch=int(event["epoch"]),
        phase=event.get("phase"),
        phase_step=event.get("phase_step"),
        phase_steps=event.get("phase_steps"),
        step=step,
        loss=loss,
        samples_per_s=speed,
        pace=Pace(now, step) if is_first else status.pace,
    )


def _stage(status: RunStatus, event: Event, now: float) -> RunStatus:
    return replace(status, state="round", round=int(event["round"]), stage=str(event["stage"]))


def _round(status: RunStatus, event: Event, now: float) -> RunStatus:
    searched, nodes = event.get("searched"), status.num_nodes
    is_final = status.epochs is not None and int(event["epoch"]) >= status.epochs
    return replace(
        status,
        state="finishing" if is_final else "training",
        stage=None,
        round=int(event["round"]),
        searched_share=searched / nodes if searched is not None and nodes else None,
        recall=event.get("recall"),
        coverage=event.get("coverage"),
        pseudo_accuracy=event.get("pseudo_accuracy"),
    )


def _eval(status: RunStatus, event: Event, now: float) -> RunStatus:
    if event.get("baseline"):
        return status
    if event["split"] == "test":
        return replace(status, state="finishing", test_accuracy=event["accuracy"])
    return replace(status, val_accuracy=event["accuracy"])


def _checkpoint(status: RunStatus, event: Event, now: float) -> RunStatus:
    return replace(status, checkpoint=str(event["name"]), checkpoint_at=now)


def _attempt(status: RunStatus, event: Event, now: float) -> RunStatus:
    again = int(event["number"]) > 1
    return replace(
        status,
        state="restarting" if again else "starting",
        reason=None,
        restarts=status.restarts + again,
        num_workers=int(event["workers"]),
        trainers={},
        pace=None,
    )


def _workers(status: RunStatus, event: Event, now: float) -> RunStatus:
    return replace(status, trainers={str(k): str(v) for k, v in event["nodes"].items()})


def _shards(status: RunStatus, event: Event, now: float) -> RunStatus:
    nodes = {str(rank): str(about["node"]) for rank, about in event["shards"].items()}
    return replace(status, num_shards=len(nodes), shards=nodes)


def _queues(status: RunStatus, event: Event, now: float) -> RunStatus:
    waiting = {str(rank): int(count) for rank, count in event["waiting_puts"].items()}
    return replace(status, waiting_puts=waiting)


def _waiting(status: RunStatus, event: Event, now: float) -> RunStatus:
    reason = event.get("reason")
    if reason is None and "trainers" in event:
        reason = f"no room for {event['trainers']} trainers and {event['shards']} shards"
    return replace(status, state="waiting", reason=reason)


def _lost(status: RunStatus, event: Event, now: float) -> RunStatus:
    reason = str(event["reason"])
    return replace(status, state="restarting", reason=reason, losses=status.losses + 1)


def _state(name: str) -> Callable[[RunStatus, Event, float], RunStatus]:
    def step(status: RunStatus, event: Event, now: float) -> RunStatus:
        return replace(status, state=name, reason=event.get("reason"))

    return step


_STEPS: Mapping[str, Callable[[RunStatus, Event, float], RunStatus]] = {
    "start": _start,
    "train": _train,
    "stage": _stage,
    "round": _round,
    "eval": _eval,
    "checkpoint": _checkpoint,
    "attempt": _attempt,
    "workers": _workers,
    "shards": _shards,
    "queues": _queues,
    "lost": _lost,
    "waiting": _waiting,
    "pausing": _state("pausing"),
    "paused": _state("restarting"),
    **{name: _state(name) for name in ("finished", "failed", "stopped")},
}
