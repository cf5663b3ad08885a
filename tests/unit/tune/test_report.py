"""The report of a sweep, and what is made of its best point."""

from __future__ import annotations

import io
import json
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import torch
from labelmesh.cluster.cli import build_app
from labelmesh.graph_store.local_store import LocalStore
from labelmesh.graph_store.store import StoreSpec
from labelmesh.trainers.config import load_config
from labelmesh.trainers.run_dir import RunDir
from labelmesh.tune import graph_best
from labelmesh.tune.points import Point, SweepResult
from labelmesh.tune.report import importance, write_sweep_report
from labelmesh.tune.report_plots import Axis
from PIL import Image
from typer.testing import CliRunner

KEYS = ("method", "k", "tau", "alpha")


def make_result(num_points: int = 40) -> SweepResult:
    rng = np.random.default_rng(0)
    points = []
    for number in range(num_points):
        method = ("laplace", "local_global")[number % 2]
        k = int(rng.integers(5, 40))
        params: dict[str, Any] = {"method": method, "k": k}
        if method == "laplace":
            params["tau"] = float(10 ** rng.uniform(-5, -1))
        else:
            params["alpha"] = float(rng.uniform(0.5, 0.99))
        mean = 0.9 - 0.01 * abs(k - 12)
        points.append(Point(params, (mean - 0.01, mean + 0.01), 0.5, "finished"))
    failed = Point({"method": "laplace", "k": 5, "tau": 0.1}, (), 0.1, "failed", error="no <edge>")
    return SweepResult("small", "accuracy", "max", KEYS, (*points, failed), ("tau",))


def test_the_report_has_its_table_plots_and_best_configuration(tmp_path: Path) -> None:
    result = make_result()
    page = write_sweep_report(result, str(tmp_path), "name = 'x'\n", notes=["A note."])
    html = Path(page).read_text()
    assert html.count("<tr") == 1 + len(result.points) + len(result.best.params)
    assert "failed: no &lt;edge&gt;" in html
    assert f"{result.best.mean:.4f}" in html
    assert f"labelmesh train {tmp_path}/best.toml" in html
    assert "A note." in html
    assert "http" not in html.replace("http://www.w3.org", "")
    assert "nan" not in html.lower().replace("numbers.some(number.isnan)", "")
    assert (tmp_path / "best.toml").read_text() == "name = 'x'\n"
    assert SweepResult.load(str(tmp_path)) == result
    table = pyarrow.csv.read_csv(tmp_path / "table.csv")
    assert table["point"].to_pylist() == list(range(41))
    assert f"The best point was number {result.points.index(result.best)};" in html
    assert table["mean"].to_pylist()[0] == pytest.approx(result.points[0].mean)
    assert pq.read_table(tmp_path / "table.parquet")["sd"].null_count == 1
    names = sorted(path.stem for path in (tmp_path / "plots").glob("*.png"))
    assert names == ["best_so_far", "by_parameter", "importance", "parallel_coordinates"]
    for path in (tmp_path / "plots").glob("*.png"):
        picture = Image.open(io.BytesIO(path.read_bytes())).convert("L")
        assert min(picture.size) > 150
        assert picture.getextrema()[0] < 100


@pytest.mark.parametrize("num_points", [0, 2])
def test_few_points_are_reported_as_such(num_points: int, tmp_path: Path) -> None:
    html = Path(write_sweep_report(make_result(num_points), str(tmp_path))).read_text()
    assert ("importance.png" in {p.name for p in tmp_path.rglob("*.png")}) is False
    assert ("cannot be said from" in html) is (num_points > 0)


def test_importance_finds_the_parameter_that_matters() -> None:
    rng = np.random.default_rng(1)
    matters = tuple(float(v) for v in rng.uniform(1e-4, 1, 60))
    idle = tuple(str(v) for v in rng.choice(["a", "b", "c"], 60))
    # Who has it is decided by `matters`: that must not count as its own merit.
    partly = tuple(1.0 if v > 0.5 else None for v in matters)
    axes = [Axis("matters", matters), Axis("idle", idle), Axis("partly", partly)]
    found = importance(axes, [math.sqrt(v) for v in matters])
    assert not isinstance(found, str)
    mean = dict(zip(found.names, found.drops.mean(axis=1)))
    assert mean["matters"] > 1.0
    assert abs(mean["idle"]) < 0.05
    assert mean["partly"] == 0.0
    assert found.explained > 0.9
    assert "no parameter matters" in str(importance(axes, [0.5] * 60))
    assert "cannot be said from 5 points" in str(importance(axes, [0.1, 0.2, 0.3, 0.4, 0.5]))


def result_of(*points: tuple[dict[str, Any], float]) -> SweepResult:
    made = tuple(Point(params, (score, score), 0.1, "finished") for params, score in points)
    return SweepResult("small", "accuracy", "max", ("method", "k"), made)


PATHS = {"method": "density_paths", "k": 33, "sigma": 0.4, "paths": "join"}
SPREAD = {"method": "local_global", "k": 21, "affinity": "power", "gamma": 5.0, "alpha": 0.9}
LAPLACE = {"method": "laplace", "k": 8, "affinity": "self_tuning"}


@pytest.mark.parametrize(
    ("config", "point", "expected"),
    [
        ("dag-digits", PATHS, {"graph.k": 33, "method.sigma": 0.4, "method.paths": "join"}),
        ("lpdssl-digits", SPREAD, {"graph.k": 21, "method.gamma": 5.0, "method.alpha": 0.9}),
        ("cyclecluster-digits", SPREAD, {"graph.k": 21, "method.gamma": 5.0, "method.alpha": 0.9}),
        ("gll-digits", LAPLACE, {"graph.k": 8, "method.solver": "laplace"}),
    ],
)
def test_the_best_point_becomes_a_configuration_of_the_run(
    config: str, point: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    spec = load_config(config)
    result = result_of((PATHS, 0.7), (SPREAD, 0.7), (LAPLACE, 0.7), (point, 0.8))
    best = graph_best.of_run(result, spec)
    assert best.config_toml is not None
    (tmp_path / "best.toml").write_text(best.config_toml)
    found = load_config(tmp_path / "best.toml")
    assert found.name == f"{spec.name}-tuned"
    assert found == load_config(config, {**expected, "name": found.name})
    assert len(best.notes) == 1


def test_a_method_that_cannot_use_the_best_point_gets_the_best_that_it_can() -> None:
    result = result_of((PATHS, 0.7), ({**PATHS, "sigma": 5.0}, 0.8), (LAPLACE, 0.9))
    best = graph_best.of_run(result, load_config("dag-digits"))
    assert best.config_toml is not None
    assert "sigma = 0.4" in best.config_toml
    assert any("0.7000" in note for note in best.notes)
    alone = graph_best.of_run(result, load_config("fixmatch-digits"))
    assert alone.config_toml is not None
    assert "k = 8\n" in alone.config_toml
    assert any("graph.k alone" in note for note in alone.notes)


def test_a_run_says_what_points_have_that_are_not_told_otherwise() -> None:
    found = graph_best.run_params(load_config("lpdssl-digits", {"method.gamma": 2.0}))
    assert found == {"k": 15, "alpha": 0.99, "gamma": 2.0, "balance_classes": False}
    assert graph_best.run_params(load_config("dag-digits")) == {
        "k": 15,
        "sigma": 0.6,
        "paths": "lu",
    }


# --- the command -------------------------------------------------------------------------------


def run_command(*words: str) -> dict[str, Any]:
    done = CliRunner().invoke(build_app(), [*words, "--json"], catch_exceptions=False)
    assert done.exit_code == 0
    return dict(json.loads(done.stdout))


def clusters() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(120) % 3
    x = 3.0 * torch.eye(3)[truth] + torch.randn(120, 3, generator=generator)
    return x, torch.where(torch.arange(120) < 30, truth, -1)


def test_the_command_on_features_gives_a_command_that_runs(tmp_path: Path) -> None:
    x, labels = clusters()
    np.savez(tmp_path / "x.npz", features=x.numpy(), labels=labels.numpy())
    (tmp_path / "own.toml").write_text(
        '[search]\nsearcher = "grid"\n[set]\nmethod = "local_global"\naffinity = "power"\n'
        "[space]\nk = { grid = [4, 8] }\ngamma = { grid = [1.0, 3.0] }\n"
        "balance_classes = { choice = [true, false] }\n"
    )
    words = ["tune-graph", str(tmp_path / "x.npz"), str(tmp_path / "own.toml")]
    words += ["--metric", "cosine", "--out", str(tmp_path / "sweeps"), "--workers", "1"]
    found = run_command(*words)
    assert (found["points"], found["failed"]) == (8, 0)
    assert found["mean"] > 0.9
    assert len(found["table"]) == 8
    assert Path(found["report"]).is_file()
    command = shlex.split(found["command"])
    assert command[:3] == ["labelmesh", "label", str(tmp_path / "x.npz")]
    command[-1] = str(tmp_path / "labels.parquet")
    run_command(*command[1:], "--no-compare")
    assert pq.read_table(tmp_path / "labels.parquet").num_rows == 120


def test_the_command_on_a_run_gives_a_configuration_that_loads(tmp_path: Path) -> None:
    x, labels = clusters()
    run = RunDir(str(tmp_path / "run"))
    run.write_text("config.toml", load_config("dag-digits").to_toml())
    store = LocalStore(StoreSpec(120, 3, 3, 5, "cosine", "float32"))
    store.put(torch.arange(120), x)
    store.put_labels(torch.arange(30), labels[:30])
    store.update_knn()
    store.refresh(None, round=0)
    store.snapshot(run.child("store"))
    words = ["tune-graph", run.uri, "graph-dag", "--set", "space.k={grid=[5,10]}"]
    words += ["--set", "space.sigma={grid=[0.1,0.5]}", "--out", str(tmp_path / "sweeps")]
    found = run_command(*words)
    assert found["points"] == 12
    spec = load_config(found["best_config"])
    assert spec.graph.k == found["best"]["k"]
    assert spec.method.model_dump()["sigma"] == found["best"]["sigma"]
    assert "trained with the labels" in found["notes"][0]
