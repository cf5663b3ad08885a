"""What sinks are shown, and that no sink can break a run."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from labelmesh.trainers.config import ConfigError, parse_spec
from labelmesh.trainers.run_dir import RunDir
from labelmesh.trainers.scalars import Point
from labelmesh.trainers.tracking import (
    RETRY_S,
    GuardedSink,
    Tracker,
    mlflow_address,
    open_tracker,
    written_points,
)


class FakeSink:
    """Remembers what it is shown; raises what it is told to."""

    def __init__(self) -> None:
        self.shown: list[list[Point]] = []
        self.closed: str | None = None
        self.error: Exception | None = None
        self.opened = 0

    def open(self) -> FakeSink:
        self.opened += 1
        return self

    def mirror(self, points: Sequence[Point]) -> None:
        if self.error is not None:
            raise self.error
        self.shown.append(list(points))

    def close(self, state: str) -> None:
        self.closed = state


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(str(tmp_path / "run"))
    train = {"kind": "train", "phase": "mixed", "epoch": 0, "step": 20, "loss": 1.0}
    made.append("metrics.jsonl", train)
    made.append("rounds.jsonl", {"kind": "round", "round": 0, "epoch": 0, "searched": 100})
    return made


POINTS = [
    Point("round/number", 0, 0.0),
    Point("round/searched_share", 0, 0.5),
    Point("train/loss", 20, 1.0),
]


def tracker(run: RunDir, *sinks: GuardedSink) -> Tracker:
    return Tracker(run, sinks, num_nodes=200, every_s=0.001)


def test_sinks_are_shown_the_files_and_the_end(run: RunDir) -> None:
    sink = FakeSink()
    tracking = tracker(run, GuardedSink("Fake", sink.open, lambda: 0.0))
    tracking.start()
    tracking.record({"kind": "train"})
    run.write_json("result.json", {"nodes/accuracy": 0.75, "steps": 20})
    tracking.close("finished")
    assert sink.shown[-1] == [*POINTS, Point("nodes/accuracy", 20, 0.75)]
    assert (sink.opened, sink.closed) == (1, "finished")


def test_a_run_that_recorded_nothing_opens_nothing(run: RunDir) -> None:
    sink = FakeSink()
    tracking = tracker(run, GuardedSink("Fake", sink.open, lambda: 0.0))
    tracking.start()
    tracking.record({"kind": "start"})
    tracking.close("failed")
    assert sink.opened == 0


def test_a_sink_that_fails_warns_once_is_left_alone_and_tried_again(
    run: RunDir, caplog: pytest.LogCaptureFixture
) -> None:
    now, sink, other = [0.0], FakeSink(), FakeSink()
    guarded = GuardedSink("MLflow", sink.open, lambda: now[0])
    tracking = tracker(run, guarded, GuardedSink("Other", other.open, lambda: now[0]))
    sink.error = ConnectionError("no route to https://me:pw@host/api")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            tracking.mirror()
        now[0] = RETRY_S
        tracking.mirror()
        sink.error = None
        tracking.mirror()
    assert sink.opened == 2
    assert sink.shown == []
    assert other.shown == [POINTS] * 5
    assert [r.getMessage() for r in caplog.records] == [
        "MLflow gets no numbers (no route to https://***@host/api); the run goes on"
    ]
    now[0] = 2 * RETRY_S
    tracking.mirror()
    assert (sink.opened, sink.shown) == (3, [POINTS])


def test_a_line_that_is_being_written_is_read_the_next_time(run: RunDir) -> None:
    sink = FakeSink()
    tracking = tracker(run, GuardedSink("Fake", sink.open, lambda: 0.0))
    whole = run.read_text("metrics.jsonl")
    line = json.dumps({"kind": "eval", "epoch": 1, "split": "val", "accuracy": 0.5})
    run.write_text("metrics.jsonl", whole + line[:20])
    tracking.mirror()
    assert sink.shown == [POINTS]
    run.write_text("metrics.jsonl", f"{whole}{line}\n")
    tracking.mirror()
    assert [p.value for p in sink.shown[-1] if p.tag == "val/accuracy"] == [0.5]


def test_a_tag_has_one_value_per_step(run: RunDir) -> None:
    for accuracy in (0.5, 0.75):
        record = {"kind": "eval", "epoch": 1, "split": "val", "accuracy": accuracy}
        run.append("metrics.jsonl", record)
    found = [p.value for p in written_points(run, 200) if p.tag == "val/accuracy"]
    assert found == [0.75]


def spec_with(**tracking: Any) -> Any:
    return parse_spec(
        {
            "name": "x",
            "data": {"uri": "d"},
            "method": {"name": "supervised"},
            "train": {"epochs": 1},
            "tracking": tracking,
        }
    )


def test_tracking_is_off_unless_asked_for(run: RunDir) -> None:
    spec = spec_with()
    assert (spec.tracking.tensorboard, spec.tracking.mlflow_uri) == (False, "")
    tracking = open_tracker(spec, run, num_nodes=1)
    tracking.start()
    tracking.close("finished")


def test_addresses_are_checked_and_hold_no_password() -> None:
    with pytest.raises(ConfigError, match="mlruns' is no address; use that of a server"):
        spec_with(mlflow_uri="mlruns")
    with pytest.raises(ConfigError, match=r"\*\*\*@host.*has credentials in it") as refused:
        spec_with(mlflow_uri="https://me:hidden@host")
    assert "hidden" not in str(refused.value)


def test_an_address_with_a_password_comes_from_the_environment() -> None:
    environ = {"MLFLOW_TRACKING_URI": "https://me:pw@host"}
    assert mlflow_address("env", environ) == "https://me:pw@host"
    assert mlflow_address("sqlite:///m.db", {}) == "sqlite:///m.db"
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI is not set"):
        mlflow_address("env", {})
