"""What a sweep found: its points with their scores, the best of them, a table."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from ..trainers.run_dir import RunDir

State = Literal["finished", "stopped", "failed"]
Mode = Literal["max", "min"]
RESULT_FILE = "sweep.json"
TABLE_FILE = "table.parquet"


@dataclass(frozen=True)
class Point:
    """One choice of parameters and how it did.

    Attributes:
        params: Value by dotted key.
        scores: One per seed or fold; of a stopped point the last ones it had.
        seconds: What it took, all seeds or folds together.
        state: "stopped": a scheduler gave it up.
        error: Of a failed point: one sentence.
        rounds: Epochs, or whatever the scheduler counts, that were done.
    """

    params: Mapping[str, Any]
    scores: tuple[float, ...]
    seconds: float
    state: State
    error: str | None = None
    rounds: int = 0

    @property
    def num(self) -> int:
        return len(self.scores)

    @property
    def mean(self) -> float:
        """NaN without a score."""
        return statistics.fmean(self.scores) if self.scores else math.nan

    @property
    def sd(self) -> float:
        """Of the sample (divided by num - 1); NaN of fewer than two scores."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else math.nan


@dataclass(frozen=True)
class SweepResult:
    """All points of a sweep, in the order in which they were chosen; they are numbered from 0.

    Attributes:
        metric: What the scores are.
        keys: Dotted keys that were searched; a point need not have those that mean nothing to it.
        log_keys: Those of them that were searched by order of magnitude.
    """

    name: str
    metric: str
    mode: Mode
    keys: tuple[str, ...]
    points: tuple[Point, ...]
    log_keys: tuple[str, ...] = ()

    @property
    def best(self) -> Point:
        """The finished point with the best mean; of equals the first.

        Raises:
            ValueError: No point was finished.
        """
        ranked = self.ranked
        if not ranked:
            why = next((p.error for p in self.points if p.error), "every point was stopped early")
            raise ValueError(
                f"no point of the sweep {self.name!r} was finished, so none is best: {why}"
            )
        return self.points[ranked[0]]

    @property
    def ranked(self) -> list[int]:
        """Numbers of the finished points, the best one first; of equals the first."""
        sign = 1.0 if self.mode == "max" else -1.0
        finished = [
            number
            for number, point in enumerate(self.points)
            if point.state == "finished" and math.isfinite(point.mean)
        ]
        return sorted(finished, key=lambda number: -sign * self.points[number].mean)

    def leaders(self, count: int) -> tuple[list[str], list[list[Any]]]:
        """Header and rows of the best points, `count` of them at most."""
        rows = []
        for number in self.ranked[:count]:
            point = self.points[number]
            values = [point.params.get(key) for key in self.keys]
            rows.append([number, *values, point.mean, point.sd, point.num])
        return ["point", *self.keys, "mean", "sd", "num"], rows

    def table(self) -> pa.Table:
        """point (its number), keys, mean, sd, num, state, seconds, rounds, error; in order.

        Values of different kinds under one key (0.5 and "self_tuning") are given as text; a key
        that a point has not is null.
        """
        columns: dict[str, pa.Array] = {"point": pa.array(range(len(self.points)), pa.int64())}
        for key in self.keys:
            columns[key] = _column([point.params.get(key) for point in self.points])
        for name in ("mean", "sd", "seconds"):
            values = [_finite(getattr(point, name)) for point in self.points]
            columns[name] = pa.array(values, pa.float64())
        columns["num"] = pa.array([point.num for point in self.points], pa.int64())
        columns["rounds"] = pa.array([point.rounds for point in self.points], pa.int64())
        columns["state"] = pa.array([point.state for point in self.points], pa.string())
        columns["error"] = pa.array([point.error for point in self.points], pa.string())
        order = ("mean", "sd", "num", "state", "seconds", "rounds", "error")
        return pa.table({name: columns[name] for name in ("point", *self.keys, *order)})

    def save(self, uri: str) -> None:
        """Write `sweep.json`, from which `load` reads, and `table.parquet` into a folder."""
        folder = RunDir(uri)
        sink = pa.BufferOutputStream()
        pq.write_table(self.table(), sink)
        folder.write_bytes(TABLE_FILE, sink.getvalue().to_pybytes())
        folder.write_json(
            RESULT_FILE,
            {
                "name": self.name,
                "metric": self.metric,
                "mode": self.mode,
                "keys": list(self.keys),
                "log_keys": list(self.log_keys),
                "points": [to_json(point) for point in self.points],
            },
        )

    @classmethod
    def load(cls, uri: str) -> SweepResult:
        """The result that `save` wrote into a folder.

        Raises:
            ValueError: There is none.
        """
        folder = RunDir(uri)
        if not folder.exists(RESULT_FILE):
            raise ValueError(f"{uri} holds no finished sweep: {RESULT_FILE} is missing")
        raw = folder.read_json(RESULT_FILE)
        return cls(
            name=raw["name"],
            metric=raw["metric"],
            mode=raw["mode"],
            keys=tuple(raw["keys"]),
            points=tuple(from_json(point) for point in raw["points"]),
            log_keys=tuple(raw["log_keys"]),
        )


def to_json(point: Point) -> dict[str, Any]:
    """A point as JSON holds it; `from_json` gives it back. Numbers that JSON lacks are null."""
    body = asdict(point)
    return {**body, "scores": [_finite(s) for s in point.scores], "params": dict(point.params)}


def from_json(raw: Mapping[str, Any]) -> Point:
    scores = tuple(math.nan if s is None else float(s) for s in raw["scores"])
    return Point(**{**raw, "scores": scores, "seconds": float(raw["seconds"])})


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _column(values: Sequence[Any]) -> pa.Array:
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and len(kinds) > 1:
        return pa.array([None if value is None else float(value) for value in values])
    if len(kinds) > 1:
        texts = [v if v is None or isinstance(v, str) else json.dumps(v) for v in values]
        return pa.array(texts, pa.string())
    return pa.array(values)
