"""MLflow, against a database of its own on the disk."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from labelmesh.trainers.config import RunSpec, parse_spec
from labelmesh.trainers.run_dir import RunDir
from labelmesh.trainers.scalars import Point

mlflow_sink = pytest.importorskip("labelmesh.trainers.mlflow_sink", reason="needs MLflow")
pytest.importorskip("sqlalchemy", reason="needs SQLAlchemy for MLflow's database")

# MLflow's own use of SQLAlchemy's deprecated options.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database; making its tables takes seconds."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    return f"sqlite:///{path}"


def spec_of(**data: Any) -> RunSpec:
    return parse_spec(
        {
            "name": "digits",
            "data": {"uri": "data/digits", **data},
            "method": {"name": "lpdssl"},
            "train": {"epochs": 2},
            "tracking": {"mlflow_experiment": "cells"},
        }
    )


def curve(*steps: int) -> list[Point]:
    return [Point("train/loss", step, 1 / step) for step in steps]


def history(sink: Any, tag: str) -> list[tuple[int, float]]:
    found = sink._client.get_metric_history(sink._id, tag)
    return [(metric.step, metric.value) for metric in found]


def test_a_resumed_run_goes_on_in_its_mlflow_run_without_doubled_steps(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = RunDir(str(tmp_path / "run"))
    first = mlflow_sink.MlflowSink(uri, spec_of(), run, wall_clock=lambda: 100.0)
    first.mirror(curve(10, 20))
    first.mirror([*curve(10, 20, 30), Point("round/recall", 20, 1.0)])
    assert history(first, "train/loss") == [(10, 0.1), (20, 0.05), (30, 1 / 30)]
    first.close("paused")
    known = first._client.get_run(first._id)
    assert known.info.status == "KILLED"
    assert (known.info.run_name, known.data.tags["labelmesh.method"]) == ("digits", "lpdssl")
    assert known.data.params["method.name"] == "lpdssl"
    assert known.data.params["train.epochs"] == "2"
    assert not any("tracking" in name for name in known.data.params)
    assert set(run.read_json("mlflow.json")) == {"run_id", "experiment"}

    second = mlflow_sink.MlflowSink(uri, spec_of(), run, wall_clock=lambda: 200.0)
    assert second._id == first._id
    assert second._client.get_run(second._id).info.status == "RUNNING"
    second.mirror([*curve(10, 20), Point("round/recall", 20, 1.0)])
    second.mirror(curve(10, 20, 30, 40))
    assert history(second, "train/loss") == [(10, 0.1), (20, 0.05), (30, 1 / 30), (40, 0.025)]
    assert history(second, "round/recall") == [(20, 1.0)]
    second.close("finished")
    assert second._client.get_run(second._id).info.status == "FINISHED"
    # A run that another server knows begins one here.
    run.write_json("mlflow.json", {"run_id": "0" * 32, "experiment": "cells"})
    other = mlflow_sink.MlflowSink(uri, spec_of(), run)
    assert other._id not in ("0" * 32, first._id)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run"]
