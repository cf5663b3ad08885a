"""Before a sweep starts and after it: what is refused, what is found again, what is left behind."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from labelmesh.trainers.config import ConfigError, RunSpec, load_config
from labelmesh.trainers.run_dir import RunDir
from labelmesh.tune.points import Point
from labelmesh.tune.ray_tune import Trials, _scheduler
from labelmesh.tune.sweep import check_before_start, conclude, histories, largest_run, load_points
from labelmesh.tune.sweep_progress import SweepProgress
from labelmesh.tune.sweep_spec import SweepSpec, base_run, parse_sweep
from labelmesh.tune.trial import point_uri, write_point
from rich.console import Console


def make(digits: str, **changes: Any) -> tuple[SweepSpec, RunSpec]:
    overrides = {"data.uri": digits, "model.feature_dim": 8, **changes.pop("set", {})}
    raw = {"name": "s", "config": "dag-digits", "set": overrides}
    spec = parse_sweep({**raw, "space": {"graph.k": {"int": [5, 9]}}, **changes})
    return spec, base_run(spec)


def begin(folder: RunDir, index: int, params: dict[str, Any], point: Point | None) -> None:
    folder.write_json(f"points/{index:04d}/params.json", params)
    if point is not None:
        write_point(point_uri(folder.uri, index), point)


def test_a_sweep_without_validation_samples_is_refused(digits: str, tmp_path: Path) -> None:
    spec, base = make(digits, set={"data.val_share": 0.0})
    with pytest.raises(ConfigError, match=r"needs samples to validate on, but data.val_share = 0"):
        check_before_start(spec, base, RunDir(str(tmp_path / "s")), resume=False)
    assert not (tmp_path / "s").exists()
    spec, base = make(digits, set={"data.val_share": 0.0}, metric="pseudo/coverage")
    assert check_before_start(spec, base, RunDir(str(tmp_path / "s")), resume=False) == ({}, {})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scheduler": {"kind": "asha", "grace": 30}}, "grace = 30 is more than the 20 rounds"),
        ({"config": "fixmatch-digits", "metric": "pseudo/coverage"}, "keeps no graph"),
        ({"set": {"graph.device": "gpu"}}, "is no device"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(
    changes: dict[str, Any], sentence: str, digits: str, tmp_path: Path
) -> None:
    spec, base = make(digits, **changes)
    with pytest.raises(ConfigError, match=sentence):
        check_before_start(spec, base, RunDir(str(tmp_path / "s")), resume=False)
    assert not (tmp_path / "s").exists()


def test_a_sweep_that_goes_on_is_the_one_that_was_started(digits: str, tmp_path: Path) -> None:
    folder = RunDir(str(tmp_path / "s"))
    check_before_start(*make(digits), folder, resume=False)
    with pytest.raises(ConfigError, match="already holds a sweep; add --resume"):
        check_before_start(*make(digits), folder, resume=False)
    more = make(digits, search={"num_samples": 99, "max_concurrent": 1})
    assert check_before_start(*more, folder, resume=True) == ({}, {})
    with pytest.raises(ConfigError, match=r"another sweep \(different: search\)"):
        check_before_start(*make(digits, search={"seed": 3}), folder, resume=True)
    with pytest.raises(ConfigError, match=r"another sweep \(different: overrides, config\)"):
        check_before_start(*make(digits, set={"graph.metric": "euclidean"}), folder, resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="exists and is not empty"):
        check_before_start(*make(digits), RunDir(str(tmp_path / "other")), resume=False)


def test_failed_points_are_tried_again_and_the_others_not(tmp_path: Path) -> None:
    folder = RunDir(str(tmp_path))
    states = ("finished", "stopped", "failed")
    points = [Point({"graph.k": i}, (0.5,), 1.0, state, None, 2) for i, state in enumerate(states)]  # type: ignore[arg-type]
    for i, point in enumerate([*points, None]):
        begin(folder, i, {"graph.k": i}, point)
    done, begun = load_points(folder)
    assert done == {0: points[0], 1: points[1]}
    assert begun == {i: {"graph.k": i} for i in range(4)}


def test_a_sweep_leaves_its_table_and_the_best_configuration(digits: str, tmp_path: Path) -> None:
    spec, base = make(digits)
    folder = RunDir(str(tmp_path))
    for i, score in enumerate((0.5, 0.75)):
        params = {"graph.k": 5 + i}
        begin(folder, i, params, Point(params, (score, score + 0.1), 1.0, "finished", None, 20))
    begin(folder, 2, {"graph.k": 9}, Point({"graph.k": 9}, (), 1.0, "failed", "broke"))
    sweep = conclude(spec, base, folder)
    assert sweep.best.params == {"graph.k": 6}
    assert sweep.best_config == load_config(tmp_path / "best.toml")
    assert (sweep.best_config.graph.k, sweep.best_config.name) == (6, "s-best")
    assert sweep.table()["mean"].to_pylist() == [0.55, pytest.approx(0.8), None]


def test_the_largest_point_counts_for_the_room(digits: str) -> None:
    spec, base = make(digits, space={"graph.num_shards": {"grid": [1, 4, 2]}})
    assert largest_run(spec, base).graph.num_shards == 4


def test_rungs_hold_what_points_of_an_earlier_driver_reached(digits: str, tmp_path: Path) -> None:
    spec, base = make(digits, scheduler={"kind": "asha", "grace": 2, "reduction": 2.0})
    folder = RunDir(str(tmp_path))
    done = {}
    for index, score in enumerate((0.9, 0.8)):
        done[index] = Point({"graph.k": 5}, (score,), 1.0, "finished", None, 20)
        for epoch in (1, 2, 4):
            record = {"kind": "eval", "split": "val", "epoch": epoch, "accuracy": score}
            folder.append(f"points/{index:04d}/seed-0/metrics.jsonl", record)
    past = histories(spec, folder, done)
    assert past[0] == {1: 0.9, 2: 0.9, 4: 0.9}
    scheduler = _scheduler(Trials(spec, base, folder.uri, 1, {}, past))
    bad, good = SimpleNamespace(trial_id="bad"), SimpleNamespace(trial_id="good")
    for trial in (bad, good):
        scheduler.on_trial_add(None, trial)
    assert scheduler.on_trial_result(None, bad, {"round": 1, "score": 0.1}) == "CONTINUE"
    assert scheduler.on_trial_result(None, bad, {"round": 2, "score": 0.1}) == "STOP"
    assert scheduler.on_trial_result(None, good, {"round": 2, "score": 0.95}) == "CONTINUE"
    assert scheduler.on_trial_result(None, good, {"round": 20, "score": 0.95}) == "STOP"


EVENTS: list[dict[str, Any]] = [
    {"kind": "sweep", "points": 3, "done": 1, "at_once": 2},
    {"kind": "point begins", "point": 1, "params": {"graph.k": 9, "train.lr": 0.012345}},
    {"kind": "point round", "point": 1, "round": 1, "score": 0.5},
    {"kind": "unknown"},
    {
        "kind": "point",
        "point": 1,
        "params": {"graph.k": 9, "train.lr": 0.012345},
        "state": "finished",
        "mean": 0.75,
        "sd": 0.125,
        "rounds": 20,
        "seconds": 71.0,
        "error": None,
    },
]


def test_progress_in_lines() -> None:
    out = io.StringIO()
    with SweepProgress("s", "val/accuracy", "max", console=Console(file=out)) as progress:
        for event in EVENTS:
            progress.update(event)
        failed = {"state": "failed", "error": "disk is full", "mean": float("nan")}
        progress.update({**EVENTS[-1], "point": 2, **failed})
    assert out.getvalue().splitlines() == [
        "s: 3 points, 1 of them done, 2 at a time",
        "point 1 begins: graph.k 9, train.lr 0.01235",
        "point 1 finished: val/accuracy 0.7500 sd 0.1250 in 1:11, the best so far",
        "point 2 failed: disk is full",
    ]


def test_progress_on_a_terminal() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100)
    with SweepProgress("s", "val/accuracy", "max", console=console) as progress:
        for event in EVENTS:
            progress.update(event)
    console.print(progress.render())
    assert "2/3 points  best val/accuracy 0.7500 (point 1)" in out.getvalue()
