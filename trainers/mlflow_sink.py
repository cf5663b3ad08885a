"""MLflow: one MLflow run per run, which a resumed run goes on with; the only importer of mlflow.

The run's id is kept in `mlflow.json`; the address is not, for it may hold a password. MLflow cannot
forget a number: after a restart from a checkpoint, steps that are trained again keep the first one
(on the CPU both are the same).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

# Requests are short and this file's caller tries again later: MLflow's own seven attempts would
# hold the end of a run for minutes. Its usage statistics are nothing that a training cluster
# should send unasked. The environment has the last word.
for _name, _value in (
    ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2"),
    ("MLFLOW_HTTP_REQUEST_TIMEOUT", "15"),
    ("MLFLOW_DISABLE_TELEMETRY", "true"),
):
    os.environ.setdefault(_name, _value)

from mlflow.entities import Metric, Param  # noqa: E402
from mlflow.exceptions import MlflowException  # noqa: E402
from mlflow.tracking import MlflowClient  # noqa: E402

from .. import __version__  # noqa: E402
from ..datasets.masking import masked_uri  # noqa: E402
from .config import RunSpec, method_name  # noqa: E402
from .run_dir import RunDir  # noqa: E402
from .scalars import Point  # noqa: E402

ABOUT = "mlflow.json"
# What one request may hold.
_METRICS_AT_ONCE = 1000
_PARAMS_AT_ONCE = 100
_PARAM_LENGTH = 500
_STATUS = {"finished": "FINISHED", "failed": "FAILED"}


class MlflowSink:
    """Mirrors points into an MLflow run.

    Args:
        wall_clock: Seconds since 1970, the time of new points.
    """

    def __init__(
        self,
        uri: str,
        spec: RunSpec,
        run: RunDir,
        *,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._now = wall_clock
        self._client = MlflowClient(uri)
        self._known: dict[str, set[int]] = {}
        self._id = self._find(run)
        self._is_resumed = self._id is not None
        if self._id is None:
            self._id = self._begin(spec, run)
        else:
            self._client.update_run(self._id, status="RUNNING")

    def mirror(self, points: Sequence[Point]) -> None:
        """See `Sink.mirror`."""
        lacking = [p for p in points if p.step not in self._steps(p.tag)]
        at_ms = int(1000 * self._now())
        for start in range(0, len(lacking), _METRICS_AT_ONCE):
            some = lacking[start : start + _METRICS_AT_ONCE]
            metrics = [Metric(p.tag, p.value, at_ms, p.step) for p in some]
            self._client.log_batch(self._id, metrics=metrics)
            for point in some:
                self._known[point.tag].add(point.step)

    def close(self, state: str) -> None:
        """See `Sink.close`. What can be resumed is "KILLED" in MLflow's words."""
        self._client.set_terminated(self._id, _STATUS.get(state, "KILLED"))

    def _steps(self, tag: str) -> set[int]:
        """Steps that have a value there; what the server knows is asked for once per tag."""
        if tag not in self._known:
            history = self._client.get_metric_history(self._id, tag) if self._is_resumed else ()
            self._known[tag] = {metric.step for metric in history}
        return self._known[tag]

    def _find(self, run: RunDir) -> str | None:
        """The MLflow run that this run began, if this server has it."""
        if not run.exists(ABOUT):
            return None
        known = str(run.read_json(ABOUT)["run_id"])
        try:
            self._client.get_run(known)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return known

    def _begin(self, spec: RunSpec, run: RunDir) -> str:
        name = spec.tracking.mlflow_experiment
        experiment = self._client.get_experiment_by_name(name)
        experiment_id = (
            self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        )
        tags = {
            "labelmesh.run": masked_uri(run.uri),
            "labelmesh.method": method_name(spec.method),
            "labelmesh.version": __version__,
        }
        made = self._client.create_run(experiment_id, tags=tags, run_name=spec.name)
        run_id = str(made.info.run_id)
        run.write_json(ABOUT, {"run_id": run_id, "experiment": name})
        params = [Param(key, value[:_PARAM_LENGTH]) for key, value in settings(spec)]
        for start in range(0, len(params), _PARAMS_AT_ONCE):
            self._client.log_batch(run_id, params=params[start : start + _PARAMS_AT_ONCE])
        return run_id


def settings(spec: RunSpec) -> Iterator[tuple[str, str]]:
    """The configuration by dotted key, without secrets."""
    body = spec.model_dump(mode="json", exclude_none=True, exclude={"tracking", "name"})
    body["method"] = {"name": method_name(spec.method), **body["method"]}
    yield from _flat(body, "")


def _flat(section: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in section.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, masked_uri(str(value))
