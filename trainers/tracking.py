"""Tracking: a run's numbers go to TensorBoard and MLflow, from the driver, beside the run.

A sink is a mirror of `metrics.jsonl` and `rounds.jsonl`: every few seconds it is shown all that
they say and adds what it lacks. So nothing is told twice, not after a restart (which drops records
after its checkpoint) and not after a server was away. The mirrors work in a thread of their own,
and whatever happens to them, the run goes on.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Protocol, runtime_checkable

from ..datasets.masking import masked_text
from .config import ConfigError, RunSpec
from .run_dir import RunDir
from .scalars import Point, in_order, points_of

LOG = logging.getLogger("labelmesh.tracking")

# How often sinks are shown what is new, in seconds; on object stores every look reads whole files.
EVERY_S, EVERY_REMOTE_S = 10.0, 30.0
# Between two attempts to reach a sink that failed.
RETRY_S = 60.0
# How long the end of a run waits for its sinks.
CLOSE_S = 30.0
_FILES = ("baseline_metrics.jsonl", "metrics.jsonl", "rounds.jsonl")
# Numbers that a run says once, at its end, besides those of its records.
_RESULTS = ("nodes/accuracy", "pseudo/accuracy")


@runtime_checkable
class Sink(Protocol):
    """Where numbers go. May raise whatever it likes."""

    def mirror(self, points: Sequence[Point]) -> None:
        """Add those of the run's points that are not there yet; a tag has one value per step."""
        ...

    def close(self, state: str) -> None:
        """The run has ended: "finished", "failed", "paused" or "interrupted"."""
        ...


class GuardedSink:
    """A sink that may fail: it says so once, and is opened anew after a while.

    Args:
        open_sink: Makes the sink; called when it is first needed and after each failure.
        clock: Seconds that never go back.
    """

    def __init__(
        self, name: str, open_sink: Callable[[], Sink], clock: Callable[[], float]
    ) -> None:
        self.name = name
        self._open, self._clock = open_sink, clock
        self._sink: Sink | None = None
        self._retry_at = -float("inf")
        self._has_warned = False

    def mirror(self, points: Sequence[Point], *, is_last: bool = False) -> None:
        """Show the sink all points of the run, unless it failed a moment ago."""
        if self._sink is not None or is_last or self._clock() >= self._retry_at:
            self._guard(lambda sink: sink.mirror(points))

    def close(self, state: str) -> None:
        if self._sink is not None:
            self._guard(lambda sink: sink.close(state))

    def _guard(self, call: Callable[[Sink], None]) -> None:
        try:
            if self._sink is None:
                self._sink = self._open()
            call(self._sink)
        except Exception as error:
            self._sink = None
            self._retry_at = self._clock() + RETRY_S
            if not self._has_warned:
                self._has_warned = True
                reason = masked_text(" ".join(str(error).split())) or type(error).__name__
                LOG.warning("%s gets no numbers (%s); the run goes on", self.name, reason)


class Tracker:
    """Keeps sinks up to date with a run's files; without sinks it does nothing.

    Args:
        num_nodes: What counts of nodes are shares of.
    """

    def __init__(
        self,
        run: RunDir,
        sinks: Sequence[GuardedSink],
        *,
        num_nodes: int,
        every_s: float = EVERY_S,
        close_s: float = CLOSE_S,
    ) -> None:
        self._run, self._sinks, self.num_nodes = run, tuple(sinks), num_nodes
        self._every_s, self._close_s = every_s, close_s
        self._is_behind = threading.Event()
        self._is_over = threading.Event()
        self._state = "interrupted"
        self._thread = threading.Thread(target=self._work, name="tracking", daemon=True)

    def start(self) -> None:
        """Look at the run's files from now on."""
        if self._sinks:
            self._thread.start()

    def record(self, event: Mapping[str, Any]) -> None:
        """One of the run's events has come; returns at once."""
        if event.get("kind") in {"train", "round", "eval"}:
            self._is_behind.set()

    def close(self, state: str) -> None:
        """Show the sinks the end, and wait for them, but not for ever."""
        if not self._sinks:
            return
        self._state = state
        self._is_over.set()
        self._thread.join(self._close_s)
        if self._thread.is_alive():
            names = " and ".join(sink.name for sink in self._sinks)
            LOG.warning("%s did not take the last numbers in %g s", names, self._close_s)

    def mirror(self, *, is_last: bool = False) -> None:
        """Show all sinks what the run's files say."""
        try:
            points = written_points(self._run, self.num_nodes)
        except (OSError, ValueError):
            # A line that is being written, or a storage that does not answer: the next time.
            self._is_behind.set()
            return
        for sink in self._sinks:
            sink.mirror(points, is_last=is_last)

    def _work(self) -> None:
        has_begun = False
        while not self._is_over.wait(self._every_s):
            if self._is_behind.is_set():
                self._is_behind.clear()
                self.mirror()
                has_begun = True
        if has_begun or self._is_behind.is_set():
            self.mirror(is_last=True)
            for sink in self._sinks:
                sink.close(self._state)


def written_points(run: RunDir, num_nodes: int) -> list[Point]:
    """All points of a run's files, each tag and step once."""
    baseline, metrics, rounds = (run.read_lines(name) for name in _FILES)
    points = list(points_of(in_order(baseline, metrics, rounds), num_nodes=num_nodes))
    if points and run.exists("result.json"):
        result, last = run.read_json("result.json"), points[-1].step
        points += [Point(name, last, result[name]) for name in _RESULTS if name in result]
    return list({(point.tag, point.step): point for point in points}.values())


def open_tracker(
    spec: RunSpec, run: RunDir, *, num_nodes: int, clock: Callable[[], float] = time.monotonic
) -> Tracker:
    """The tracker that `[tracking]` asks for.

    Raises:
        ConfigError: MLflow is asked for and not installed, or its address is not known.
    """
    sinks = []
    if spec.tracking.tensorboard:
        sinks.append(GuardedSink("TensorBoard", lambda: _tensorboard(run), clock))
    if spec.tracking.mlflow_uri:
        if find_spec("mlflow") is None:
            raise ConfigError(
                "tracking.mlflow_uri needs MLflow, which is not installed; install it with "
                "`pip install 'labelmesh[mlflow]'`, or leave the key out"
            )
        uri = mlflow_address(spec.tracking.mlflow_uri, os.environ)
        sinks.append(GuardedSink("MLflow", lambda: _mlflow(uri, spec, run), clock))
    every_s = EVERY_S if run.local_path is not None else EVERY_REMOTE_S
    return Tracker(run, sinks, num_nodes=num_nodes, every_s=every_s)


def mlflow_address(uri: str, environ: Mapping[str, str]) -> str:
    """Where MLflow is.

    Raises:
        ConfigError: The environment or the configuration does not say it.
    """
    if uri == "env":
        uri = environ.get("MLFLOW_TRACKING_URI", "")
        if not uri:
            raise ConfigError(
                "tracking.mlflow_uri = 'env', but MLFLOW_TRACKING_URI is not set where this "
                "command runs; set it, or give the address"
            )
    return uri


def _tensorboard(run: RunDir) -> Sink:
    from .tensorboard_sink import TensorBoardSink

    return TensorBoardSink(run)


def _mlflow(uri: str, spec: RunSpec, run: RunDir) -> Sink:
    from .mlflow_sink import MlflowSink

    return MlflowSink(uri, spec, run)
