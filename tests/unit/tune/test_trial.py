"""A point's runs: what is reported when, what is left in the folder, and what is not done twice."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from labelmesh.trainers.config import RunSpec
from labelmesh.trainers.outcome import RunFailed, RunPaused
from labelmesh.trainers.run_dir import RunDir
from labelmesh.tune import trial
from labelmesh.tune.metrics import METRICS
from labelmesh.tune.sweep_spec import base_run, parse_sweep
from labelmesh.tune.trial import Listener, Task, read_point, run_point


class FakeCluster:
    """Writes and tells what a run of three epochs does; breaks where it is told to."""

    def __init__(self, scores: dict[int, float], broken: dict[int, Exception]) -> None:
        self.scores, self.broken = scores, broken
        self.runs: list[str] = []

    def __enter__(self) -> FakeCluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    def train(self, spec: RunSpec, *, out: str, on_event: Any, **options: Any) -> None:
        assert options == {"resume": True, "report": False}
        assert not spec.train.score_test
        self.runs.append(spec.name)
        run = RunDir(f"{out}/{spec.name}")
        run.write_text("checkpoints/epoch-0003/COMMIT.json", "{}")
        for epoch in range(1, 4):
            value = self.scores[spec.seed] * epoch / 3
            record = {"kind": "eval", "split": "val", "epoch": epoch, "accuracy": value}
            run.append("metrics.jsonl", record)
            on_event(record)
            on_event({"kind": "checkpoint", "name": f"epoch-{epoch:04d}"})
            if spec.seed in self.broken:
                raise self.broken[spec.seed]


def make(
    monkeypatch: pytest.MonkeyPatch,
    folder: Path,
    scores: dict[int, float],
    broken: dict[int, Exception] | None = None,
) -> tuple[FakeCluster, Task]:
    fake = FakeCluster(scores, broken or {})
    monkeypatch.setattr(trial, "connect", lambda: fake)
    raw = {
        "name": "s",
        "config": "dag-digits",
        "search": {"num_seeds": 2},
        "set": {"train.epochs": 3},
        "space": {"graph.k": {"int": [5, 9]}},
    }
    spec = parse_sweep(raw)
    return fake, Task(spec, base_run(spec), str(folder / "0000"), {"graph.k": 6})


def test_the_first_seed_reports_its_rounds_and_all_of_them_their_mean(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake, task = make(monkeypatch, tmp_path, {0: 0.75, 1: 0.25})
    told: list[tuple[int, float]] = []
    point = run_point(task, lambda round, score: told.append((round, score)))
    assert told == [(1, 0.25), (2, 0.5), (3, 0.5)]
    assert (point.scores, point.state, point.rounds) == ((0.75, 0.25), "finished", 3)
    assert read_point(task.uri) == point
    assert fake.runs == ["seed-0", "seed-1"]
    assert not (tmp_path / "0000" / "seed-0" / "checkpoints").exists()


def test_seeds_that_are_done_are_not_run_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, task = make(monkeypatch, tmp_path, {0: 0.75, 1: 0.25}, {1: RunFailed("disk is full")})
    first = run_point(task, lambda *_: None)
    assert (first.state, first.error, first.scores) == ("failed", "disk is full", (0.75,))
    fake, task = make(monkeypatch, tmp_path, {1: 0.25})
    told: list[tuple[int, float]] = []
    again = run_point(task, lambda round, score: told.append((round, score)))
    assert (again.state, again.scores, fake.runs) == ("finished", (0.75, 0.25), ["seed-1"])
    assert told == [(3, 0.5)]


def test_seconds_before_a_pause_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ticks = itertools.count(0.0, 10.0)
    monkeypatch.setattr(trial.time, "perf_counter", lambda: next(ticks))
    _, task = make(monkeypatch, tmp_path, {0: 0.75, 1: 0.25}, {1: RunPaused("round 2")})
    for _ in range(2):
        with pytest.raises(RunPaused):
            run_point(task, lambda *_: None)
    _, task = make(monkeypatch, tmp_path, {1: 0.25})
    assert run_point(task, lambda *_: None).seconds == 40.0


def test_values_that_do_not_go_together_are_a_failed_point(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, task = make(monkeypatch, tmp_path, {0: 1.0})
    bad = Task(task.spec, task.base, task.uri, {"train.labeled_per_batch": 500})
    point = run_point(bad, lambda *_: pytest.fail("nothing to report"))
    assert point.state == "failed"
    assert point.error is not None
    assert "is more than train.batch_size" in point.error


def test_a_run_without_the_metric_is_a_failed_point(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, task = make(monkeypatch, tmp_path, {0: float("nan"), 1: 1.0})
    assert run_point(task, lambda *_: None).error == "the run recorded no val/accuracy"


def test_rounds_are_reported_after_their_checkpoint() -> None:
    told: list[Any] = []
    listener = Listener(METRICS["val/accuracy"], 3, lambda *seen: told.append(seen))
    for event in (
        {"kind": "checkpoint"},
        {"kind": "eval", "split": "val", "epoch": 1, "accuracy": 0.5},
        {"kind": "eval", "split": "val", "epoch": 2, "accuracy": 0.6},
    ):
        listener.on_event(event)
    assert told == []
    listener.on_event({"kind": "checkpoint"})
    listener.on_event({"kind": "checkpoint"})
    assert told == [(2, 0.6)]


def test_a_point_that_is_not_done_is_none(tmp_path: Path) -> None:
    assert read_point(str(tmp_path)) is None
