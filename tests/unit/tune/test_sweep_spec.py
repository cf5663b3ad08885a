"""Sweep files: what is read, what is refused and with which sentence, and the shipped ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from labelmesh.trainers.config import ConfigError, load_config
from labelmesh.trainers.method import method_names
from labelmesh.tune.metrics import METRICS
from labelmesh.tune.search import listed_points
from labelmesh.tune.sweep_spec import (
    base_run,
    best_run,
    load_sweep,
    parse_sweep,
    shipped_sweeps,
    trial_run,
)

SPACE = {"graph.k": {"int": [5, 40]}}


def sweep(**changes: Any) -> dict[str, Any]:
    return {"name": "s", "config": "dag-digits", "space": SPACE, **changes}


@pytest.mark.parametrize("name", list(shipped_sweeps()))
def test_every_shipped_sweep_fits_its_configuration(name: str) -> None:
    spec = load_sweep(name)
    base = base_run(spec)
    assert spec.name == name
    assert base.data.val_share > 0
    points = listed_points(spec) or ()
    for point in points:
        assert not trial_run(spec, base, point, 0).train.score_test
    text = shipped_sweeps()[name].read_text()
    assert text.startswith("# "), "help shows the first line"


def test_every_method_that_has_something_to_search_has_a_sweep() -> None:
    swept = {load_sweep(name).config for name in shipped_sweeps()}
    methods = {
        load_config(config).method.__class__.__module__.rsplit(".", 1)[-1] for config in swept
    }
    assert set(method_names()) - methods <= {"supervised", "knn", "linear_probe"}


def test_the_mode_is_the_metrics_own_unless_told() -> None:
    assert parse_sweep(sweep()).mode == "max"
    assert parse_sweep(sweep(metric="train/loss")).mode == "min"
    assert parse_sweep(sweep(metric="train/loss", mode="max")).mode == "max"


def test_a_sweep_comes_back_from_its_text(tmp_path: Path) -> None:
    spec = load_sweep("sweep-dag-digits", {"search.num_seeds": 3, "graph.metric": "euclidean"})
    (tmp_path / "s.toml").write_text(spec.to_toml())
    assert load_sweep(tmp_path / "s.toml") == spec
    assert spec.search.num_seeds == 3
    assert spec.overrides["graph.metric"] == "euclidean"


def test_a_configuration_is_found_beside_the_sweep(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(load_config("dag-digits", {"graph.k": 7}).to_toml())
    (tmp_path / "s.toml").write_text('config = "mine.toml"\n[space]\n"train.lr" = {grid = [0.1]}\n')
    assert base_run(load_sweep(tmp_path / "s.toml")).graph.k == 7


def test_runs_of_a_sweep_leave_the_test_split_alone_and_the_best_does_not() -> None:
    spec = parse_sweep(sweep(search={"seed_keys": ["seed", "data.split_seed"]}))
    base = base_run(spec)
    trial = trial_run(spec, base, {"graph.k": 9}, 2)
    assert (trial.name, trial.graph.k, trial.seed, trial.data.split_seed) == ("seed-2", 9, 2, 2)
    assert (trial.train.score_test, trial.train.baseline_steps) == (False, 0)
    best = best_run(spec, base, {"graph.k": 9})
    assert (best.name, best.graph.k, best.seed) == ("s-best", 9, 0)
    assert (best.train.score_test, best.train.baseline_steps) == (True, None)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"metric": "test/accuracy"}, "a sweep that chose by the test split would leave nothing"),
        ({"metric": "val/acuracy"}, "did you mean 'val/accuracy'"),
        ({"mode": "best"}, "mode = 'best'"),
        ({"spcae": {}}, "unknown key 'spcae'; did you mean 'space'"),
        ({"search": {"num_sample": 3}}, "unknown key 'search.num_sample'; did you mean"),
        ({"search": {"num_samples": 0}}, r"search.num_samples = 0"),
        ({"search": {"searcher": "tpe"}}, r"search.searcher = 'tpe'"),
        ({"scheduler": {"kind": "hyperband"}}, "scheduler.kind = 'hyperband'"),
        ({"name": "a/b"}, "name = 'a/b'"),
        ({"space": {}}, "is empty"),
        ({"space": {"graph.k": {"grid": []}}}, "expected a list of values"),
        ({"set": {"graph.k": 3}}, "'graph.k' is both set and searched"),
        ({"set": {"train.score_test": True}}, "cannot be set in a sweep: a sweep never reads"),
        ({"space": {"method.name": {"choice": ["dag"]}}}, "cannot be searched: its hyper"),
        ({"space": {"seed": {"int": [0, 3]}}}, "'seed' is searched and one of search.seed_keys"),
        (
            {"search": {"searcher": "grid"}, "space": {"train.lr": {"uniform": [0.1, 0.2]}}},
            "is a continuum",
        ),
        (
            {"search": {"searcher": "optuna"}, "space": {"graph.k": {"grid": [1, 2]}}},
            "give it as {choice",
        ),
        ({"scheduler": {"kind": "pbt"}}, "'graph.k' cannot change while a run goes on"),
        ({"scheduler": {"kind": "pbt"}, "search": {"num_seeds": 2}}, "set it to 1"),
        ({"scheduler": {"kind": "pbt"}, "search": {"searcher": "optuna"}}, "searcher = 'random'"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_sweep(sweep(**changes), source="my.toml")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"space": {"graph.kk": {"int": [1, 3]}}}, r"unknown key 'graph.kk'; did you mean"),
        ({"space": {"method.sigma": {"uniform": [0, 3]}}}, r"'method.sigma' = 3.0.*less than"),
        ({"set": {"method.sgima": 1}}, "unknown key 'method.sgima'; did you mean"),
        ({"search": {"seed_keys": ["data.uri"]}}, "'data.uri' is no whole number"),
    ],
)
def test_keys_are_checked_against_the_configuration(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        base_run(parse_sweep(sweep(**changes)))


def test_overrides_of_the_name_and_the_space_are_refused() -> None:
    with pytest.raises(ConfigError, match="give --name instead"):
        load_sweep("sweep-dag-digits", {"name": "x"})
    with pytest.raises(ConfigError, match="is said in the sweep's file"):
        load_sweep("sweep-dag-digits", {"space.x": 1})
    with pytest.raises(ConfigError, match=r"no sweep 'sweep-dag-digit'.*did you mean"):
        load_sweep("sweep-dag-digit")


def test_metrics_read_their_records_and_no_others() -> None:
    val = METRICS["val/accuracy"]
    record = {"kind": "eval", "epoch": 3, "split": "val", "accuracy": 0.5}
    assert val.read(record) == (3, 0.5)
    assert val.read({**record, "split": "test"}) is None
    assert val.read({**record, "baseline": True}) is None
    assert val.history([record, {**record, "epoch": 1}, {**record, "accuracy": 0.75}]) == {
        1: 0.5,
        3: 0.75,
    }
    coverage = METRICS["pseudo/coverage"]
    assert coverage.read({"kind": "round", "round": 2, "epoch": 2, "coverage": 1.0}) == (2, 1.0)
    assert METRICS["pseudo/accuracy"].read({"kind": "round", "pseudo_accuracy": None}) is None
    assert METRICS["train/loss"].read({"kind": "train", "epoch": 0, "loss": 2.0}) == (1, 2.0)
    assert coverage.last_round(load_config("dag-digits", {"refresh.every_epochs": 3})) == 7
