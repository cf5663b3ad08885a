"""A sweep from its file to its report: the driver's part; `ray_tune.py` runs the points.

A sweep's directory: `sweep.toml` and `config.toml` (resolved), `points/0000/` ... (see `trial.py`),
and at the end `sweep.json`, the table, the report with its plots, and `best.toml`, which
`labelmesh train` takes as it is. A driver that dies leaves all points in their folders: the same
command with `--resume` runs what is missing and goes on with what was begun.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from ..datasets.masking import refuse_secrets
from ..trainers.config import ConfigError, RunSpec, absolute_uri, with_overrides
from ..trainers.outcome import RunFailed
from ..trainers.prepare import load_config_text, prepare
from ..trainers.run_dir import RunDir
from .concurrency import driver_needs, most_at_once
from .generations import check_population, train_population
from .metrics import METRICS
from .points import Point, SweepResult
from .report import write_sweep_report
from .search import Params, Searcher, listed_points, make_searcher
from .sweep_spec import SweepSpec, base_run, best_run, load_sweep, parse_sweep, trial_run
from .trial import POINT_FILE, read_point

if TYPE_CHECKING:
    from ..cluster.api import Cluster

OnEvent = Callable[[dict[str, Any]], None]
PARAMS_FILE = "params.json"
_MAY_CHANGE = ("num_samples", "max_concurrent")


@dataclass(frozen=True)
class Sweep:
    """A finished sweep."""

    uri: str
    result: SweepResult

    @property
    def best(self) -> Point:
        """The point with the best mean over its seeds.

        Raises:
            ValueError: No point was finished.
        """
        return self.result.best

    @property
    def best_config(self) -> RunSpec:
        """The configuration of the best point, for `cluster.train`."""
        return load_config_text(RunDir(self.uri).read_text("best.toml"))

    def table(self) -> pa.Table:
        """A row per point: its values, mean, sd, num, state, seconds, rounds, error."""
        return self.result.table()

    @classmethod
    def load(cls, uri: str) -> Sweep:
        """A finished sweep, by its directory.

        Raises:
            ValueError: There is none.
        """
        return cls(uri, SweepResult.load(uri))


def run_sweep(
    cluster: Cluster,
    sweep: str | Path | SweepSpec,
    *,
    set: Mapping[str, Any] | None = None,
    name: str | None = None,
    out: str | None = None,
    resume: bool = False,
    on_event: OnEvent | None = None,
) -> Sweep:
    """Run a sweep to its end, on a cluster; `Cluster.tune` tells the arguments.

    Raises:
        ConfigError, ResourceError: Bad input; nothing was started or written.
        RunFailed: No point was finished; the sweep's directory says why of each.
    """
    spec = sweep if isinstance(sweep, SweepSpec) else load_sweep(sweep, set)
    if name is not None:
        spec = parse_sweep({**tomllib.loads(spec.to_toml()), "name": name})
    base = base_run(spec)
    refuse_secrets(out, "--out")
    uri = f"{absolute_uri(out or base.output.uri).rstrip('/')}/{spec.name}"
    folder = RunDir(uri)
    done, begun = check_before_start(spec, base, folder, resume=resume)
    tell = on_event or (lambda event: None)
    cluster.start()
    _run_points(spec, base, folder, done, begun, tell)
    found = conclude(spec, base, folder)
    if not any(point.state == "finished" for point in found.result.points):
        why = next((p.error for p in found.result.points if p.error), "all were stopped early")
        raise RunFailed(f"no point of the sweep {spec.name!r} was finished: {why}")
    return found


def check_before_start(
    spec: SweepSpec, base: RunSpec, folder: RunDir, *, resume: bool
) -> tuple[dict[int, Point], dict[int, Params]]:
    """Everything that can be said before anything is started: (points that are done, values of all
    that were begun), by number. Writes the sweep's description.

    Raises:
        ConfigError: One sentence for the user.
    """
    if METRICS[spec.metric].file == "rounds.jsonl" and not base.method.uses_graph:
        raise ConfigError(
            f"metric = {spec.metric!r}: the method of {spec.config!r} keeps no graph and so has no "
            "pseudo-labels of it; use 'val/accuracy'"
        )
    last = METRICS[spec.metric].last_round(base)
    if spec.scheduler.kind == "asha" and spec.scheduler.grace > last:
        raise ConfigError(
            f"scheduler.grace = {spec.scheduler.grace} is more than the {last} rounds of a run"
        )
    if spec.scheduler.kind == "pbt":
        check_population(spec, base)
    started = folder.exists("sweep.toml")
    if started and not resume:
        raise ConfigError(
            f"{folder.uri} already holds a sweep; add --resume to go on, or choose another --name"
        )
    if not started and folder.names(""):
        raise ConfigError(f"{folder.uri} exists and is not empty; choose another --name or --out")
    if started:
        _check_same(spec, base, folder)
    first = trial_run(spec, base, _any_point(spec), 0)
    prepared = prepare(first, RunDir(folder.child("points/none")), resume=True)
    if spec.metric.startswith("val/") and not len(prepared.split.val_rows):
        raise ConfigError(
            f"metric = {spec.metric!r} needs samples to validate on, but data.val_share = "
            f"{base.data.val_share:g} and {base.data.uri} has no validation split; set "
            "data.val_share, for example --set data.val_share=0.2"
        )
    folder.write_text("sweep.toml", spec.to_toml())
    folder.write_text("config.toml", base.to_toml())
    return load_points(folder)


def load_points(folder: RunDir) -> tuple[dict[int, Point], dict[int, Params]]:
    """(points that ended, without the failed ones: these are tried again; values of all that were
    begun), by number."""
    done: dict[int, Point] = {}
    begun: dict[int, Params] = {}
    for name in folder.names("points"):
        if not folder.exists(f"points/{name}/{PARAMS_FILE}"):
            continue
        begun[int(name)] = folder.read_json(f"points/{name}/{PARAMS_FILE}")
        point = read_point(folder.child(f"points/{name}"))
        if point is not None and point.state != "failed":
            done[int(name)] = point
    return done, begun


def conclude(spec: SweepSpec, base: RunSpec, folder: RunDir) -> Sweep:
    """What a sweep leaves: result, table, report, and the best configuration."""
    names = (n for n in folder.names("points") if folder.exists(f"points/{n}/{POINT_FILE}"))
    points = [read_point(folder.child(f"points/{name}")) for name in sorted(names, key=int)]
    space = spec.search_space
    result = SweepResult(
        name=spec.name,
        metric=spec.metric,
        mode=spec.mode,
        keys=space.keys,
        points=tuple(point for point in points if point is not None),
        log_keys=space.log_keys,
    )
    best = None
    if any(point.state == "finished" for point in result.points):
        best = best_run(spec, base, result.best.params).to_toml()
    write_sweep_report(result, folder.uri, best)
    return Sweep(folder.uri, result)


class _Recorded:
    """A searcher whose points are written down before they are begun."""

    def __init__(self, searcher: Searcher, folder: RunDir) -> None:
        self._searcher = searcher
        self._folder = folder

    def ask(self) -> tuple[int, Params] | None:
        asked = self._searcher.ask()
        if asked is not None:
            index, params = asked
            self._folder.write_json(f"points/{index:04d}/{PARAMS_FILE}", dict(params))
            self._folder.remove(f"points/{index:04d}/{POINT_FILE}")
        return asked

    def tell(self, index: int, point: Point) -> None:
        self._searcher.tell(index, point)


def _run_points(
    spec: SweepSpec,
    base: RunSpec,
    folder: RunDir,
    done: Mapping[int, Point],
    begun: Mapping[int, Params],
    on_event: OnEvent,
) -> None:
    from .ray_tune import Trials, cluster_size, run_trials

    listed = listed_points(spec)
    count = spec.search.num_samples if listed is None else len(listed)
    left = max(count - len(done), 1)
    wanted = min(spec.search.max_concurrent or left, left)
    cpus, gpus = cluster_size()
    concurrency = most_at_once(largest_run(spec, base), cpus=cpus, gpus=gpus, wanted=wanted)
    on_event({"kind": "sweep", "points": count, "done": len(done), "at_once": concurrency})
    past = {} if spec.scheduler.kind != "asha" else histories(spec, folder, done)
    trials = Trials(spec, base, folder.uri, concurrency, driver_needs(base), past)

    def run(searcher: Searcher, until: int | None = None) -> None:
        run_trials(replace(trials, until=until), _Recorded(searcher, folder), on_event)

    if spec.scheduler.kind == "pbt":
        train_population(spec, base, folder, run)
    elif len(done) < count:
        run(make_searcher(spec, done=done, begun=begun))


def histories(
    spec: SweepSpec, folder: RunDir, done: Mapping[int, Point]
) -> dict[int, dict[int, float]]:
    """Value by round of the first seed of each point."""
    metric = METRICS[spec.metric]
    runs = {index: RunDir(folder.child(f"points/{index:04d}/seed-0")) for index in done}
    return {index: metric.history(run.read_lines(metric.file)) for index, run in runs.items()}


def largest_run(spec: SweepSpec, base: RunSpec) -> RunSpec:
    """A run that needs as much as any point's: numbers of processes and shares may be searched."""
    sizes = {
        key: max(dimension.extremes)  # type: ignore[type-var]
        for key, dimension in spec.search_space.dimensions.items()
        if key in {"train.num_workers", "graph.num_shards"} or "s_per_" in key
    }
    return with_overrides(base, sizes)


def _any_point(spec: SweepSpec) -> Params:
    return {key: dimension.extremes[0] for key, dimension in spec.search_space.dimensions.items()}


def _check_same(spec: SweepSpec, base: RunSpec, folder: RunDir) -> None:
    """A sweep that goes on is the one that was started; more points of it may be asked for."""
    old = parse_sweep(tomllib.loads(folder.read_text("sweep.toml")), source="sweep.toml")
    same = {name: getattr(spec.search, name) for name in _MAY_CHANGE}
    old = old.model_copy(update={"search": old.search.model_copy(update=same)})
    different = [n for n in SweepSpec.model_fields if getattr(old, n) != getattr(spec, n)]
    before = load_config_text(folder.read_text("config.toml"))
    if before.model_copy(update={"output": base.output}) != base:
        different.append("config")
    if different:
        raise ConfigError(
            f"{folder.uri} was started as another sweep (different: {', '.join(different)}); "
            "resume with the same one, or choose another --name"
        )
