"""A population's runs with trainers that only write files: copies, kills, ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from labelmesh.trainers.checkpoint import FORMAT
from labelmesh.trainers.config import ConfigError, RunSpec, load_config
from labelmesh.trainers.run_dir import RunDir
from labelmesh.tune.generations import POPULATION_FILE, check_population, train_population
from labelmesh.tune.points import Point
from labelmesh.tune.search import Searcher
from labelmesh.tune.sweep_spec import SweepSpec, base_run, parse_sweep, trial_run
from labelmesh.tune.trial import point_uri, read_point, write_point


def make(**scheduler: Any) -> tuple[SweepSpec, RunSpec]:
    spec = parse_sweep(
        {
            "name": "s",
            "config": "fixmatch-digits",
            "search": {"num_samples": 4},
            "scheduler": {"kind": "pbt", "interval": 2, **scheduler},
            "set": {"train.epochs": 5},
            "space": {"train.lr": {"loguniform": [0.01, 1.0]}},
        }
    )
    return spec, base_run(spec)


class Killed(RuntimeError):
    pass


class Trainers:
    """Trains members by writing what runs write; accuracy is -|log10(lr) + 1| summed over epochs,
    so that a member's records tell which values its lineage had."""

    def __init__(self, spec: SweepSpec, base: RunSpec, folder: RunDir, die_after: int = -1) -> None:
        self.spec, self.base, self.folder = spec, base, folder
        self.die_after = die_after
        self.trained: list[tuple[int, int]] = []

    def __call__(self, searcher: Searcher, until: int | None) -> None:
        while (asked := searcher.ask()) is not None:
            if len(self.trained) == self.die_after:
                raise Killed
            self._train(*asked, until)

    def _train(self, member: int, params: Any, until: int | None) -> None:
        run = RunDir(f"{point_uri(self.folder.uri, member)}/seed-0")
        config = trial_run(self.spec, self.base, params, 0).to_toml()
        if run.exists("config.toml"):
            assert run.read_text("config.toml") == config
        run.write_text("config.toml", config)
        records = run.read_lines("metrics.jsonl")
        done, value = (records[-1]["epoch"], records[-1]["accuracy"]) if records else (0, 0.0)
        # workers are stopped a little too late
        for epoch in range(done + 1, min((until or 5) + 1, 5) + 1):
            value -= abs(math.log10(params["train.lr"]) + 1)
            if until is None or epoch <= until:
                record = {"kind": "eval", "split": "val", "epoch": epoch, "accuracy": value}
                run.append("metrics.jsonl", record)
            position = {"epoch": epoch, "step": epoch, "world_size": 1}
            commit = {"format": FORMAT, "position": position, "files": {}}
            run.write_json(f"checkpoints/epoch-{epoch:04d}/COMMIT.json", commit)
        self.trained.append((member, until or 5))
        if until is None:
            point = Point(dict(params), (value,), 1.0, "finished", None, 5)
            write_point(point_uri(self.folder.uri, member), point)


def outcome(folder: RunDir) -> list[Point | None]:
    return [read_point(point_uri(folder.uri, member)) for member in range(4)]


def test_members_train_side_by_side_and_the_worst_become_copies(tmp_path: Path) -> None:
    spec, base = make()
    folder = RunDir(str(tmp_path / "s"))
    trainers = Trainers(spec, base, folder)
    train_population(spec, base, folder, trainers)
    assert trainers.trained == [(m, until) for until in (2, 4, 5) for m in range(4)]
    state = folder.read_json(POPULATION_FILE)
    assert [change["round"] for change in state["changes"]] == [2, 4]
    assert state["pending"] == 0
    points = outcome(folder)
    for member, point in enumerate(points):
        assert point is not None
        assert point.params == state["params"][member]


@pytest.mark.parametrize("die_after", range(12))
def test_a_killed_driver_changes_nothing(die_after: int, tmp_path: Path) -> None:
    spec, base = make()
    whole, folder = RunDir(str(tmp_path / "whole")), RunDir(str(tmp_path / "killed"))
    train_population(spec, base, whole, Trainers(spec, base, whole))
    with pytest.raises(Killed):
        train_population(spec, base, folder, Trainers(spec, base, folder, die_after))
    rest = Trainers(spec, base, folder)
    train_population(spec, base, folder, rest)
    assert len(rest.trained) == 12 - die_after
    assert outcome(folder) == outcome(whole)
    assert folder.read_json(POPULATION_FILE) == whole.read_json(POPULATION_FILE)


def test_copies_that_were_ordered_are_made_again(tmp_path: Path) -> None:
    spec, base = make()
    whole, folder = RunDir(str(tmp_path / "whole")), RunDir(str(tmp_path / "killed"))
    train_population(spec, base, whole, Trainers(spec, base, whole))
    with pytest.raises(Killed):
        train_population(spec, base, folder, Trainers(spec, base, folder, 4))
    state = folder.read_json(POPULATION_FILE)
    member = state["changes"][0]["member"]
    # as if the driver had died between the order and the end of the copy
    folder.write_json(POPULATION_FILE, {**state, "pending": 1})
    folder.remove(f"points/{member:04d}/seed-0/metrics.jsonl")
    train_population(spec, base, folder, Trainers(spec, base, folder))
    assert outcome(folder) == outcome(whole)


def test_a_member_that_failed_becomes_a_copy_of_one_that_did_not(tmp_path: Path) -> None:
    spec, base = make()
    folder = RunDir(str(tmp_path / "s"))

    class OneBreaks(Trainers):
        def _train(self, member: int, params: Any, until: int | None) -> None:
            if (member, until) == (1, 2):
                broken = Point(dict(params), (), 1.0, "failed", "broke", 0)
                write_point(point_uri(self.folder.uri, member), broken)
            else:
                super()._train(member, params, until)

    train_population(spec, base, folder, OneBreaks(spec, base, folder))
    changes = folder.read_json(POPULATION_FILE)["changes"]
    assert 1 in [change["member"] for change in changes if change["round"] == 2]
    assert [point and point.state for point in outcome(folder)] == ["finished"] * 4


def test_what_a_population_cannot_do_is_said() -> None:
    spec, base = make()
    with pytest.raises(ConfigError, match=r"interval = 2 is no multiple of train.eval_every_ep"):
        check_population(spec, load_config("fixmatch-digits", {"train.eval_every_epochs": 4}))
    with pytest.raises(ConfigError, match="leaves nothing to change in a run of 2 epochs"):
        check_population(spec, load_config("fixmatch-digits", {"train.epochs": 2}))
    with pytest.raises(ConfigError, match="takes val/accuracy, not 'pseudo/coverage'"):
        check_population(spec.model_copy(update={"metric": "pseudo/coverage"}), base)
