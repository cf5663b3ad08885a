"""A run of one to two workers on machines that go away and come: it shrinks, and grows again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from labelmesh.cluster.api import Run
from safetensors.torch import load_file

from .raylets import raylets

pytestmark = [pytest.mark.ray, pytest.mark.soak]

OPTIONS = {
    "train.threads_per_worker": 1,
    "train.epochs": 12,
    "train.warmup_steps": 4,
    "train.steps_per_epoch": 8,
    "train.baseline_steps": 0,
    "train.batch_size": 128,
    "train.labeled_per_batch": 8,
    "train.num_workers": [1, 2],
    "graph.num_shards": 2,
    "graph.k": 6,
    "data.num_nodes": 300,
    "model.feature_dim": 16,
    "resources.cpus_per_trainer": 1.0,
    "resources.cpus_per_shard": 0.5,
}

DRIVER = """
import json, sys
import labelmesh as lm
from labelmesh.cluster import supervise

# The machine that comes is to be seen while there is much left to do.
supervise._LOOK_EVERY_S = 1.0
address, out, name, options = *sys.argv[1:4], json.loads(sys.argv[4])

def tell(event):
    if event["kind"] in {"attempt", "pausing", "paused", "lost", "round", "shards", "workers"}:
        print(json.dumps(event), flush=True)

with lm.connect(address) as cluster:
    cluster.train("dag-digits", set=options, name=name, out=out, on_event=tell, report=False)
"""


def drive(cluster: Any, out: Path, name: str, options: dict[str, Any]) -> subprocess.Popen[str]:
    arguments = [cluster.address, str(out), name, json.dumps(options)]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", DRIVER, *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )


def drain(cluster: Any, node_id: str) -> None:
    """What a cloud says of a spot machine that it takes back."""
    command = ["drain-node", "--address", cluster.address, "--node-id", node_id]
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
    soon = ["--deadline-remaining-seconds", "600"]
    ray = [sys.executable, "-m", "ray.scripts.scripts"]
    subprocess.run([*ray, *command, *why, *soon], check=True, capture_output=True)


@contextmanager
def held(pids: Iterable[int]) -> Iterator[None]:
    """Within it processes stand still: on a busy machine a run is done before a node has come."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


@pytest.fixture(scope="module")
def runs(
    digits: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Run, list[dict[str, Any]]]:
    """A run on two quiet machines; one whose second machine goes, and is replaced; its events."""
    out = tmp_path_factory.mktemp("runs")
    options = {**OPTIONS, "data.uri": digits}
    events: list[dict[str, Any]] = []
    with raylets(2, cpus=2) as cluster:
        with drive(cluster, out, "quiet", options) as quiet:
            quiet.communicate()
        leaving = cluster.list_all_nodes()[-1]
        with drive(cluster, out, "moved", options) as moved:
            assert moved.stdout is not None
            for line in moved.stdout:
                events.append(json.loads(line))
                attempts = sum(event["kind"] == "attempt" for event in events)
                if events[-1]["kind"] == "round" and (attempts, events[-1]["round"]) == (1, 2):
                    drain(cluster, leaving.node_id)
                if events[-1]["kind"] == "workers" and attempts == 2:
                    with held(events[-1]["pids"].values()):
                        cluster.add_node(num_cpus=2, temp_dir=leaving.temp_dir)
        assert (quiet.returncode, moved.returncode) == (0, 0)
    return Run(str(out / "quiet")), Run(str(out / "moved")), events


def test_the_run_shrinks_and_grows(runs: tuple[Run, Run, list[dict[str, Any]]]) -> None:
    events = runs[2]
    assert [e["workers"] for e in events if e["kind"] == "attempt"] == [2, 1, 2]
    assert [e["reason"] for e in events if e["kind"] == "pausing"] == [
        "1 machine of the run will go away",
        "there is room for 2 workers",
    ]
    paused = [e["checkpoint"] for e in events if e["kind"] == "paused"]
    assert paused == [e["resumed_from"] for e in events if e["kind"] == "attempt"][1:]
    nodes = [set(e["shards"][r]["node"] for r in "01") for e in events if e["kind"] == "shards"]
    assert [len(n) for n in nodes] == [2, 1, 2]
    assert not any(e["kind"] == "lost" for e in events)


def test_it_makes_the_rounds_and_steps_of_a_run_that_nothing_happened_to(
    runs: tuple[Run, Run, list[dict[str, Any]]],
) -> None:
    quiet, moved = runs[0], runs[1]
    seen = [
        [(r["round"], r["epoch"], r["coverage"]) for r in run.dir.read_lines("rounds.jsonl")]
        for run in (quiet, moved)
    ]
    assert len(seen[0]) > 10
    assert seen[0] == seen[1]
    steps = [
        [r["step"] for r in run.dir.read_lines("metrics.jsonl") if r["kind"] == "train"]
        for run in (quiet, moved)
    ]
    assert steps[0] == steps[1]
    a, b = (load_file(run.path / "model.safetensors") for run in (quiet, moved))
    for name, expected in a.items():
        torch.testing.assert_close(b[name], expected, rtol=1e-2, atol=1e-3)
