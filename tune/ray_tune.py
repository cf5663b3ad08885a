"""The points of a sweep as trials of Ray Tune.

Tune starts, stops and watches the trials' processes (`trial_actor.py`). What is tried next is asked
of a `Searcher`, and what became of a point is read from its folder: Tune's own records
(`ray_tune/`) are never needed again.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import ray
from ray import tune
from ray.tune.progress_reporter import TrialProgressCallback
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import Searcher as TuneSearcher

from ..trainers.config import RunSpec
from ..trainers.reservation import remove_orphans
from ..trainers.run_dir import RunDir
from .points import Point
from .search import Searcher
from .sweep_spec import SweepSpec
from .trial import Task, point_uri, read_point, sentence, write_point
from .trial_actor import Stopping, TrialActor

OnEvent = Callable[[dict[str, Any]], None]
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # a failed point has nothing to report
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    # results alone go to stdout
    "RAY_AIR_NEW_OUTPUT": "0",
    # Ctrl-C ends the sweep instead of leaving a half that looks whole
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}
# They speak of records that Tune was told not to keep, and of how fast it is itself.
_SILENT = ("ray.tune.analysis.experiment_analysis", "ray.tune.tune", "ray.tune.utils.util")
_RECORDS = "ray_tune"
# A process that died is begun again, from its run's checkpoint, so often.
_RESTARTS = 2
_LOOK_EVERY_S = 2.0


@dataclass(frozen=True)
class Trials:
    """What is run.

    Attributes:
        uri: The sweep's directory.
        concurrency: Most trials at a time.
        resources: Of the process of each, by Ray's names.
        past: (rounds done, value) by round, of points of an earlier driver: what a scheduler
            compares with.
        until: Stop every trial after so many rounds, without calling it done.
    """

    spec: SweepSpec
    base: RunSpec
    uri: str
    concurrency: int
    resources: Mapping[str, float]
    past: Mapping[int, Mapping[int, float]]
    until: int | None = None


def cluster_size() -> tuple[float, float]:
    """CPUs and GPUs of the cluster that this process has joined."""
    have = ray.cluster_resources()
    return float(have.get("CPU", 0.0)), float(have.get("GPU", 0.0))


def run_trials(trials: Trials, searcher: Searcher, on_event: OnEvent) -> None:
    """Run points until the searcher has no more; each leaves its `point.json`."""
    folder = RunDir(trials.uri)
    local = folder.local_path
    folder.remove(_RECORDS)
    stopping = Stopping()
    train = tune.with_parameters(
        TrialActor, spec=trials.spec, base=trials.base, uri=trials.uri, until=trials.until
    )
    tuner = tune.Tuner(
        tune.with_resources(train, dict(trials.resources)),
        tune_config=tune.TuneConfig(
            search_alg=_Asked(searcher, stopping),
            scheduler=_scheduler(trials),
            num_samples=-1,
            # a process that has trained one point has everything imported for the next
            reuse_actors=trials.spec.scheduler.kind == "none",
            max_concurrent_trials=trials.concurrency,
            trial_name_creator=lambda trial: f"point-{trial.config['index']:04d}",
            trial_dirname_creator=lambda trial: f"point-{trial.config['index']:04d}",
        ),
        run_config=tune.RunConfig(
            name=_RECORDS,
            storage_path=str(local.resolve()) if local is not None else trials.uri,
            callbacks=[_Watcher(trials, searcher, on_event, stopping)],
            failure_config=tune.FailureConfig(max_failures=_RESTARTS),
            # a run's checkpoints are its own
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            stop=None if trials.until is None else {"round": trials.until},
            verbose=0,
        ),
    )
    with _settings():
        tuner.fit()
    remove_orphans()
    folder.remove(_RECORDS)


class _Asked(TuneSearcher):  # type: ignore[misc]
    """Hands a `Searcher`'s points to Tune, as text: Tune would take dots and lists apart.

    It ends the search only when all trials that were told to stop have done so: at its end Tune
    kills those that have not within ten seconds.
    """

    def __init__(self, searcher: Searcher, stopping: Stopping) -> None:
        super().__init__()
        self._searcher, self._stopping = searcher, stopping

    def __reduce__(self) -> Any:
        # Tune pickles whatever it is given; a study and a terminal have no place in that.
        return TuneSearcher, ()

    def set_search_properties(self, *args: Any, **kwargs: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        asked = self._searcher.ask()
        if asked is None:
            finished: str = TuneSearcher.FINISHED
            return finished if self._stopping.all_ended() else None
        index, params = asked
        return {"index": index, "params": json.dumps(dict(params))}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        """The watcher tells, once the point's file is written."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the points' folders say all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `save`."""


class _Watcher(TrialProgressCallback):  # type: ignore[misc]
    """Writes what became of points that could not write it themselves, and passes on progress.

    It stands in the place of Tune's own progress, which would be printed among the results.
    """

    def __init__(
        self, trials: Trials, searcher: Searcher, on_event: OnEvent, stopping: Stopping
    ) -> None:
        super().__init__()
        self._trials = trials
        self._searcher = searcher
        self._on_event = on_event
        self._stopping = stopping
        self._next_look = time.monotonic()
        self._rounds: dict[int, tuple[int, float]] = {}

    def __reduce__(self) -> Any:
        return TrialProgressCallback, ()

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        index, params = _point_of(trial)
        self._on_event({"kind": "point begins", "point": index, "params": params})

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any
    ) -> None:
        if "score" not in result:
            return
        index, _ = _point_of(trial)
        seen = (int(result["round"]), float(result["score"]))
        if self._rounds.get(index) == seen:
            return
        self._rounds[index] = seen
        self._on_event({"kind": "point round", "point": index, "round": seen[0], "score": seen[1]})

    def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
        self._stopping.all_ended()
        # what a trial held whose process was killed; it is about to be begun again
        if self._trials.base.train.engine != "local" and time.monotonic() >= self._next_look:
            remove_orphans()
            self._next_look = time.monotonic() + _LOOK_EVERY_S

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        index, params = _point_of(trial)
        point = read_point(point_uri(self._trials.uri, index))
        if point is None:
            self._stopping.add(trial.temporary_state.ray_actor)
            if self._trials.until is not None:
                return
            round, score = self._rounds.get(index, (0, float("nan")))
            scores = (score,) if round else ()
            point = Point(params, scores, _seconds(trial), "stopped", None, round)
            write_point(point_uri(self._trials.uri, index), point)
        self._end(index, point)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        index, params = _point_of(trial)
        error = trial.get_error()
        why = "its process died" if error is None else sentence(error)
        round = self._rounds.get(index, (0, 0.0))[0]
        point = Point(params, (), _seconds(trial), "failed", why, round)
        self._end(index, write_point(point_uri(self._trials.uri, index), point))

    def _end(self, index: int, point: Point) -> None:
        self._searcher.tell(index, point)
        self._on_event(
            {
                "kind": "point",
                "point": index,
                "params": dict(point.params),
                "state": point.state,
                "mean": point.mean,
                "sd": point.sd,
                "rounds": point.rounds,
                "seconds": point.seconds,
                "error": point.error,
            }
        )


def _point_of(trial: Any) -> tuple[int, dict[str, Any]]:
    return int(trial.config["index"]), json.loads(trial.config["params"])


def _seconds(trial: Any) -> float:
    return float(trial.last_result.get("time_total_s", 0.0))


def _scheduler(trials: Trials) -> Any:
    """Tune's scheduler; ASHA's rungs hold what points of an earlier driver reached."""
    how = trials.spec.scheduler
    if how.kind != "asha":
        return FIFOScheduler()
    task = Task(trials.spec, trials.base, trials.uri, {})
    scheduler = ASHAScheduler(
        time_attr="round",
        metric="score",
        mode=trials.spec.mode,
        grace_period=how.grace,
        reduction_factor=how.reduction,
        max_t=task.metric.last_round(trials.base),
    )
    for index, history in trials.past.items():
        trial = SimpleNamespace(trial_id=f"earlier-{index}")
        scheduler.on_trial_add(None, trial)
        for round, score in history.items():
            scheduler.on_trial_result(None, trial, {"round": round, "score": score})
    return scheduler


@contextmanager
def _settings() -> Iterator[None]:
    """Tune's switches, for as long as it runs."""
    before = {name: os.environ.get(name) for name in _SETTINGS}
    os.environ.update(_SETTINGS)
    levels = {name: logging.getLogger(name).level for name in _SILENT}
    for name in _SILENT:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
