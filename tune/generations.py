"""A population's runs, generation by generation: train to a round, copy, change, go on.

`population.json` in the sweep's directory says where the population stands. It is written before
the copies that it orders are made, and again when they are: who finds copies ordered makes them
(again). Donors do not go on before that, so a copy made twice is the same.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from ..trainers import checkpoint
from ..trainers.config import ConfigError, RunSpec
from ..trainers.run_dir import RunDir
from .metrics import METRICS
from .population import Change, Population, next_population
from .search import ListSearcher, Searcher, listed_points
from .sweep_spec import SweepSpec, trial_run
from .trial import POINT_FILE, point_uri

POPULATION_FILE = "population.json"
RunMembers = Callable[[Searcher, int | None], None]
"""Trains the points of a searcher until so many rounds are done (None: to the end)."""


def check_population(spec: SweepSpec, base: RunSpec) -> None:
    """Refuse what a population cannot be trained with.

    Raises:
        ConfigError: One sentence for the user.
    """
    interval, train = spec.scheduler.interval, base.train
    if METRICS[spec.metric].by != "epoch":
        raise ConfigError(f"scheduler.kind = 'pbt' takes val/accuracy, not {spec.metric!r}")
    for key in ("eval_every_epochs", "checkpoint_every_epochs"):
        if interval % getattr(train, key):
            raise ConfigError(
                f"scheduler.interval = {interval} is no multiple of train.{key} = "
                f"{getattr(train, key)}; a member is judged and copied after a checkpoint"
            )
    if interval >= train.epochs:
        raise ConfigError(
            f"scheduler.interval = {interval} leaves nothing to change in a run of "
            f"{train.epochs} epochs; lower it"
        )


def train_population(
    spec: SweepSpec, base: RunSpec, folder: RunDir, run_members: RunMembers
) -> None:
    """From the start, or from where a driver was killed, to the end of every member's run."""
    last = base.train.epochs
    population = _load(spec, folder)
    while True:
        for change in population.changes[len(population.changes) - population.pending :]:
            become_copy(spec, base, folder, change)
        population = replace(population, pending=0)
        _save(folder, population)
        until = population.round if population.round < last else None
        members = range(len(population.params))
        there = [m for m in members if _is_there(folder, m, until)]
        if len(there) < len(members):
            run_members(ListSearcher(population.params, there), until)
        if until is None:
            return
        population = next_population(
            population,
            _scores(spec, folder, population),
            mode=spec.mode,
            space=spec.search_space,
            quantile=spec.scheduler.quantile,
            next_round=min(population.round + spec.scheduler.interval, last),
            seed=spec.search.seed,
        )
        _save(folder, population)


def become_copy(spec: SweepSpec, base: RunSpec, folder: RunDir, change: Change) -> None:
    """Put a copy of the donor's run, as it was after the round, in the place of a member's."""
    donor, member = (_point(folder, i) for i in (change.donor, change.member))
    for name in (POINT_FILE, "seed-0.json", "seed-0"):
        member.remove(name)
    _forget_checkpoints_after(_run(folder, change.donor), change.round)
    with tempfile.TemporaryDirectory() as scratch:
        donor.download("seed-0", Path(scratch))
        member.upload(Path(scratch), "seed-0")
    config = trial_run(spec, base, change.params, 0).to_toml()
    _run(folder, change.member).write_text("config.toml", config)


def _forget_checkpoints_after(run: RunDir, round: int) -> None:
    """What workers wrote while they were being stopped."""
    for name in checkpoint.committed(run):
        at = checkpoint.read_position(run, name)
        if (at.epoch, at.within_epoch) > (round, False):
            run.remove(f"checkpoints/{name}")


def _is_there(folder: RunDir, member: int, until: int | None) -> bool:
    """Whether a member has reached the round (None: its end), or failed on its way."""
    if _point(folder, member).exists(POINT_FILE):
        return True
    if until is None:
        return False
    run = _run(folder, member)
    _forget_checkpoints_after(run, until)
    return any(checkpoint.read_position(run, n).epoch == until for n in checkpoint.committed(run))


def _scores(spec: SweepSpec, folder: RunDir, population: Population) -> dict[int, float]:
    """Of the members that reached the round."""
    metric, out = METRICS[spec.metric], {}
    for member in range(len(population.params)):
        if _point(folder, member).exists(POINT_FILE):
            continue
        history = metric.history(_run(folder, member).read_lines(metric.file))
        if population.round in history:
            out[member] = history[population.round]
    return out


def _point(folder: RunDir, member: int) -> RunDir:
    return RunDir(point_uri(folder.uri, member))


def _run(folder: RunDir, member: int) -> RunDir:
    return RunDir(_point(folder, member).child("seed-0"))


def _load(spec: SweepSpec, folder: RunDir) -> Population:
    if folder.exists(POPULATION_FILE):
        return Population.from_json(folder.read_json(POPULATION_FILE))
    points = listed_points(spec)
    assert points is not None
    return Population(spec.scheduler.interval, points)


def _save(folder: RunDir, population: Population) -> None:
    folder.write_json(POPULATION_FILE, population.to_json())
