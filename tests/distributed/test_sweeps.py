"""A sweep on Ray whose driver is killed, gone on with; beside it the same point undisturbed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import labelmesh as lm
import pytest
import ray
from labelmesh.datasets.manifest import splits_of
from labelmesh.trainers import evaluate, worker
from labelmesh.trainers.config import ConfigError, load_config
from labelmesh.trainers.run_dir import RunDir
from labelmesh.tune.points import SweepResult
from labelmesh.tune.sweep_spec import base_run, load_sweep
from labelmesh.tune.trial import Task, point_uri, read_point, run_point

FAST = {
    "train.engine": "local",
    "train.threads_per_worker": 1,
    "train.num_workers": 1,
    "train.warmup_steps": 4,
    "train.steps_per_epoch": 2,
    "train.batch_size": 16,
    "train.labeled_per_batch": 8,
    "data.num_nodes": 120,
    "data.val_share": 0.2,
    "model.feature_dim": 8,
}
# Points 0 and 1 are runs of 2 and 12 epochs; 2 and 3 want more neighbours than there are nodes.
SWEEP = """
config = "dag-digits"
[search]
searcher = "grid"
max_concurrent = 2
[space]
"graph.k" = { grid = [5, 500] }
"train.epochs" = { grid = [2, 12] }
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory, digits: str) -> tuple[Path, dict[str, Any]]:
    """A sweep's file and the overrides of its runs."""
    path = tmp_path_factory.mktemp("sweep") / "four.toml"
    path.write_text(SWEEP)
    return path, {**FAST, "data.uri": digits}


DRIVER = """
import json, sys
import labelmesh as lm
path, overrides, out = sys.argv[1:]
with lm.connect() as cluster:
    cluster.tune(path, set=json.loads(overrides), out=out)
"""


def kill_midway(asked: tuple[Path, dict[str, Any]], out: Path, *, address: str) -> None:
    """Start a driver; kill it when point 0 is done and point 1 has a checkpoint of its own."""
    path, overrides = asked
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(path), json.dumps(overrides), str(out)],
        env={**os.environ, "RAY_ADDRESS": address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    done = out / "four" / "points" / "0000" / "point.json"
    begun = out / "four" / "points" / "0001" / "seed-0" / "checkpoints"
    deadline = time.monotonic() + 400
    while not (done.exists() and any(begun.glob("*/COMMIT.json"))):
        assert time.monotonic() < deadline, "the sweep did not come so far"
        assert driver.poll() is None, "the driver ended by itself"
        time.sleep(0.02)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()


@pytest.mark.ray
@pytest.mark.soak
def test_a_sweep_goes_on_after_its_driver_was_killed(
    ray_local: str,
    asked: tuple[Path, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kill_midway(asked, tmp_path, address=ray.get_runtime_context().gcs_address)
    folder = tmp_path / "four"
    result_of_0 = folder / "points/0000/seed-0/result.json"
    written, before = result_of_0.stat().st_mtime_ns, read_point(str(folder / "points/0000"))
    assert read_point(str(folder / "points/0001")) is None
    path, overrides = asked
    events: list[dict[str, Any]] = []
    lock = threading.RLock()  # what a console holds, and no pickle can

    def on_event(event: dict[str, Any]) -> None:
        with lock:
            events.append(event)

    with pytest.raises(ConfigError, match="already holds a sweep; add --resume"):
        lm.connect().tune(path, set=overrides, out=str(tmp_path))
    sweep = lm.connect().tune(
        path, set=overrides, out=str(tmp_path), resume=True, on_event=on_event
    )
    # what was done is not done again, what was begun goes on, what fails ends nothing
    assert result_of_0.stat().st_mtime_ns == written
    assert sweep.result.points[0] == before
    assert events[0] == {"kind": "sweep", "points": 4, "done": 1, "at_once": 2}
    assert sweep.table()["state"].to_pylist() == ["finished", "finished", "failed", "failed"]
    assert "graph.k = 500 is not below the number of nodes" in str(sweep.result.points[2].error)
    assert sweep.result.points[1].rounds == 12
    epochs = [
        r["epoch"] for r in RunDir(f"{folder}/points/0001/seed-0").read_lines("metrics.jsonl")
    ]
    assert epochs == sorted(epochs)
    first = next(e for e in events if e["kind"] == "point round" and e["point"] == 1)
    assert first["round"] > 1
    # the same point undisturbed, in this process
    told = undisturbed(asked, tmp_path / "whole", sweep.result.points[1].params, monkeypatch)
    assert read_point(point_uri(str(tmp_path / "whole"), 1)) is not None
    assert told[-1] == (12, sweep.result.points[1].mean)
    # what is left behind
    assert SweepResult.load(sweep.uri) == sweep.result
    best = load_config(folder / "best.toml")
    assert best == sweep.best_config
    assert best.graph.k == 5
    assert best.train.score_test
    assert not (folder / "ray_tune").exists()
    assert not [p for p in folder.rglob("*.json*") if "test/" in p.read_text()]


def undisturbed(
    asked: tuple[Path, dict[str, Any]],
    out: Path,
    params: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> list[tuple[int, float]]:
    """Run a point in this process; what it reports. Nothing of it asks for a test sample."""
    path, overrides = asked
    spec = load_sweep(path, overrides)
    base = base_run(spec)
    read: list[int] = []
    reader, truth = worker.Reader, evaluate.load_truth

    def watched_reader(uri: str, rows: Any, *args: Any, **kwargs: Any) -> Any:
        read.extend(rows.tolist())
        return reader(uri, rows, *args, **kwargs)

    def watched_truth(uri: str, rows: Any) -> Any:
        read.extend(rows.tolist())
        return truth(uri, rows)

    monkeypatch.setattr(worker, "Reader", watched_reader)
    monkeypatch.setattr(evaluate, "Reader", watched_reader)
    monkeypatch.setattr(evaluate, "load_truth", watched_truth)
    told: list[tuple[int, float]] = []
    task = Task(spec, base, point_uri(str(out), 1), params)
    point = run_point(task, lambda round, score: told.append((round, score)))
    assert point.error is None
    parts = splits_of(base.data.uri)
    assert set(read) & set(parts["train"].tolist())
    assert not set(read) & set(parts["test"].tolist())
    return told
