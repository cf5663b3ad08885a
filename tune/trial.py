"""One point of a sweep: a run per seed, in one process, each in a directory of its own.

A point's folder holds `seed-0/`, `seed-1/` ... (ordinary runs), `seed-0-seconds.json` where that
run has paused, `seed-0.json` once it is done, and `point.json` once all are. Who begins again where
a process died finds out from these files what is left to do. Rounds of the first seed are reported
as they come, so that a scheduler can give the point up before the others are run. Knows no Ray.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..cluster.api import connect
from ..datasets.masking import masked_text
from ..trainers.config import RunSpec, with_overrides
from ..trainers.outcome import RunPaused, root_cause
from ..trainers.run_dir import RunDir
from .metrics import METRICS, Metric
from .points import Point, State, from_json, to_json
from .sweep_spec import SweepSpec, trial_run

POINT_FILE = "point.json"
Report = Callable[[int, float], None]
"""Takes (rounds done, value) and returns when the run may go on."""


@dataclass(frozen=True)
class Task:
    """What a process is told about the point that it works on. Picklable.

    Attributes:
        base: The run that is tuned, from `base_run`.
        uri: The point's folder.
        params: What the point changes.
        until: The runs pause after so many epochs; None: they go to their end.
    """

    spec: SweepSpec
    base: RunSpec
    uri: str
    params: Mapping[str, Any]
    until: int | None = None

    @property
    def metric(self) -> Metric:
        return METRICS[self.spec.metric]

    @property
    def folder(self) -> RunDir:
        return RunDir(self.uri)


def point_uri(sweep_uri: str, index: int) -> str:
    """The folder of a point in its sweep's."""
    return f"{sweep_uri}/points/{index:04d}"


def read_point(uri: str) -> Point | None:
    """What became of the point in a folder; None while it is not done."""
    folder = RunDir(uri)
    return from_json(folder.read_json(POINT_FILE)) if folder.exists(POINT_FILE) else None


def write_point(uri: str, point: Point) -> Point:
    RunDir(uri).write_json(POINT_FILE, to_json(point))
    return point


def forget_if_stopped(task: Task) -> None:
    """Remove the checkpoints of a point that was given up: nobody goes on with it."""
    point = read_point(task.uri)
    if point is not None and point.state == "stopped":
        for seed in range(task.spec.search.num_seeds):
            RunDir(task.folder.child(f"seed-{seed}")).remove("checkpoints")


def run_point(task: Task, report: Report) -> Point:
    """Run what is left of a point; a seed that breaks makes it a failed point, not an error.

    `report` hears of the first seed's rounds but the last, and at the end of the mean.
    """
    start, scores, rounds, seconds = time.perf_counter(), [], 0, 0.0
    state: State = "finished"
    error = None
    for seed in range(task.spec.search.num_seeds):
        try:
            done = run_seed(task, seed, report if seed == 0 else None)
        except RunPaused:  # not broken: begun again from the checkpoint that it made
            raise
        except Exception as problem:  # whatever it is, the sweep goes on with its other points
            state, error = "failed", sentence(problem)
            seconds += time.perf_counter() - start
            break
        scores.append(done["score"])
        rounds, seconds = max(rounds, done["rounds"]), seconds + done["seconds"]
        start = time.perf_counter()
    point = Point(dict(task.params), tuple(scores), seconds, state, error, rounds)
    write_point(task.uri, point)
    if state == "finished":
        report(rounds, point.mean)
    return point


def run_seed(task: Task, seed: int, report: Report | None) -> dict[str, Any]:
    """Run, or go on with, one seed's run: its score, rounds and seconds.

    Raises:
        ValueError: The run recorded no such metric; or whatever broke the run.
    """
    folder, name = task.folder, f"seed-{seed}"
    if folder.exists(f"{name}.json"):
        done: dict[str, Any] = folder.read_json(f"{name}.json")
        return done
    run = RunDir(folder.child(name))
    spec = trial_run(task.spec, task.base, task.params, seed)
    spec = with_overrides(spec, {} if task.until is None else {"train.pause_after": task.until})
    spent = Stopwatch(folder, f"{name}-seconds.json")
    listener = Listener(task.metric, task.metric.last_round(spec), report)
    try:
        with connect() as cluster:
            cluster.train(spec, out=task.uri, resume=True, report=False, on_event=listener.on_event)
    except RunPaused:
        spent.keep()
        raise
    history = task.metric.history(run.read_lines(task.metric.file))
    if not history or not math.isfinite(history[max(history)]):
        raise ValueError(f"the run recorded no {task.spec.metric}")
    done = {
        "score": history[max(history)],
        "rounds": max(history),
        "seconds": spent.seconds,
    }
    folder.write_json(f"{name}.json", done)
    # A finished run is not gone on with, and a sweep has many of them.
    run.remove("checkpoints")
    return done


class Stopwatch:
    """Seconds since it was made, and those that were kept in its file before."""

    def __init__(self, folder: RunDir, name: str) -> None:
        self._folder, self._name = folder, name
        self._before = folder.read_json(name)["seconds"] if folder.exists(name) else 0.0
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        return float(self._before + time.perf_counter() - self._start)

    def keep(self) -> None:
        self._folder.write_json(self._name, {"seconds": self.seconds})


class Listener:
    """Reports a run's rounds, each after the checkpoint that it can be resumed from."""

    def __init__(self, metric: Metric, last_round: int, report: Report | None) -> None:
        self._metric = metric
        self._last_round = last_round
        self._report = report
        self._seen: tuple[int, float] | None = None

    def on_event(self, event: Mapping[str, Any]) -> None:
        if self._report is None:
            return
        self._seen = self._metric.read(event) or self._seen
        if event.get("kind") != "checkpoint" or self._seen is None:
            return
        seen, self._seen = self._seen, None
        # Round 0 says what the start is worth; the last one is reported with all seeds.
        if 0 < seen[0] < self._last_round and math.isfinite(seen[1]):
            self._report(*seen)


def sentence(error: BaseException) -> str:
    """What broke a run, without tracebacks and credentials."""
    if isinstance(error, ValueError):
        return masked_text(" ".join(str(error).split()))
    return masked_text(root_cause(error))
