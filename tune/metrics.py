"""What a sweep can judge runs by, read from the records that a run writes while it trains.

Nothing here looks at the test split: its records are no metric. `pseudo/accuracy` compares
pseudo-labels with the hidden labels of the training nodes, which benchmarks have and real tasks
have not; `pseudo/coverage` and `train/loss` need no labels at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..trainers.config import RunSpec
from ..trainers.rounds import RoundSchedule
from .points import Mode


@dataclass(frozen=True)
class Metric:
    """A number of a run's records.

    Attributes:
        file: Where a run keeps the records.
        kind, split, field: Which records (`split` only where there are several), and their number.
        by: What says when it was: epochs done, or the number of the round.
    """

    mode: Mode
    file: str
    kind: str
    field: str
    by: str
    split: str | None = None

    def read(self, record: Mapping[str, Any]) -> tuple[int, float] | None:
        """(rounds done, value); None if the record is about something else."""
        if record.get("kind") != self.kind or record.get("split") != self.split:
            return None
        value = record.get(self.field)
        if value is None or record.get("baseline"):
            return None
        done = int(record[self.by]) + (1 if self.kind == "train" else 0)
        return done, float(value)

    def history(self, records: Iterable[Mapping[str, Any]]) -> dict[int, float]:
        """The last value of each round, in order."""
        found = [seen for record in records if (seen := self.read(record)) is not None]
        return dict(sorted(dict(found).items()))

    def last_round(self, spec: RunSpec) -> int:
        """How many rounds a run has done at its end."""
        if self.by == "epoch":
            return spec.train.epochs
        return RoundSchedule(spec.refresh.every_epochs, spec.train.epochs).final


METRICS = {
    "val/accuracy": Metric("max", "metrics.jsonl", "eval", "accuracy", "epoch", split="val"),
    "pseudo/accuracy": Metric("max", "rounds.jsonl", "round", "pseudo_accuracy", "round"),
    "pseudo/coverage": Metric("max", "rounds.jsonl", "round", "coverage", "round"),
    "train/loss": Metric("min", "metrics.jsonl", "train", "loss", "epoch"),
}
