"""A run's records as named numbers by step: what every tracking sink is told. Pure.

Names: `train/loss`, `train/loss_<part>`, `train/lr`, `samples_per_second`, `val/accuracy`,
`test/accuracy`, `round/searched_share`, `round/recall`, `round/coverage` and what else a round says
of itself; of the supervised baseline the same after `baseline/`. The step of a round or an accuracy
is the last training step that was logged before it, so all curves share one axis.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Event = Mapping[str, Any]

WARM_UP = "warmup"
_NODE_COUNTS = {"searched": "searched_share", "changed": "changed_share"}
_POSITION = frozenset({"kind", "epoch", "baseline"})


@dataclass(frozen=True)
class Point:
    """One number of a curve."""

    tag: str
    step: int
    value: float


def points_of(records: Iterable[Event], *, num_nodes: int) -> Iterator[Point]:
    """The numbers of records, in the order in which the run made them.

    Args:
        num_nodes: What counts of nodes are shares of.
    """
    steps: dict[str, int] = {}
    for record in records:
        prefix = "baseline/" if record.get("baseline") else ""
        if record["kind"] == "train":
            steps[prefix] = int(record["step"])
        for tag, value in _numbers(record, num_nodes):
            yield Point(prefix + tag, steps.get(prefix, 0), float(value))


def _numbers(record: Event, num_nodes: int) -> Iterator[tuple[str, float]]:
    if record["kind"] == "train":
        yield from _of_training(record)
    elif record["kind"] == "eval":
        yield f"{record['split']}/accuracy", record["accuracy"]
    elif record["kind"] == "round":
        yield from _of_round(record, num_nodes)


def _of_round(record: Event, num_nodes: int) -> Iterator[tuple[str, float]]:
    for key, value in record.items():
        if key in _POSITION or not isinstance(value, int | float):
            continue
        if key in _NODE_COUNTS:
            yield f"round/{_NODE_COUNTS[key]}", value / num_nodes
        else:
            yield "round/number" if key == "round" else f"round/{key}", value


def _of_training(record: Event) -> Iterator[tuple[str, float]]:
    names = {"loss": "train/loss", "lr": "train/lr", "samples_per_s": "samples_per_second"}
    for key, tag in names.items():
        if record.get(key) is not None:
            yield tag, record[key]
    for part, value in record.get("parts", {}).items():
        yield f"train/loss_{part}", value


def in_order(
    baseline: Iterable[Event], metrics: Sequence[Event], rounds: Iterable[Event]
) -> Iterator[Event]:
    """The lines of a run's three files as the run made them: each round before the training of its
    epoch, after the warm-up."""
    for record in baseline:
        yield {**record, "baseline": True}
    waiting = list(rounds)
    for record in metrics:
        is_training = record["kind"] == "train" and record.get("phase") != WARM_UP
        while waiting and is_training and waiting[0]["epoch"] <= record["epoch"]:
            yield waiting.pop(0)
        yield record
    yield from waiting
