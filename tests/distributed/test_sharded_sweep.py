"""A sweep whose points are runs of shards and DeepSpeed workers: one is killed on its way, some are
stopped early, some break; afterwards nothing of them is left."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import labelmesh as lm
import pytest
import ray
from labelmesh.trainers.reservation import remove_orphans
from labelmesh.trainers.run_dir import RunDir
from labelmesh.tune.sweep import Sweep
from ray._private.state import actors

from .waiting import is_alive, until

pytestmark = [pytest.mark.ray, pytest.mark.soak]

RUNS = {
    "train.engine": "deepspeed",
    "train.threads_per_worker": 1,
    "train.num_workers": 1,
    "train.epochs": 4,
    "train.warmup_steps": 20,
    "train.steps_per_epoch": 10,
    "train.batch_size": 32,
    "train.labeled_per_batch": 16,
    "data.num_nodes": 160,
    "data.val_share": 0.2,
    "model.feature_dim": 16,
    "graph.num_shards": 2,
}
# Point 0 learns, point 2 does not; 1 and 3 want more neighbours than there are nodes.
SWEEP = """
config = "dag-digits"
[search]
searcher = "grid"
max_concurrent = 1
[scheduler]
kind = "asha"
grace = 2
reduction = 2.0
[space]
"train.lr" = { grid = [0.05, 1e-7] }
"graph.k" = { grid = [6, 500] }
"""
# Ray's own, one for each cluster.
RAYS = {"_AutoscalingCoordinatorActor"}


@dataclass
class Watch:
    """Kills the process of point 0 after its first round; what the sweep told, and what was held
    while each point went on."""

    out: Path
    killed: int = 0
    events: list[dict[str, Any]] = field(default_factory=list)
    cpus_free: list[float] = field(default_factory=list)

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        if event["kind"] != "point round":
            return
        self.cpus_free.append(ray.available_resources()["CPU"])
        if not self.killed:
            run = RunDir(f"{self.out}/four/points/{event['point']:04d}/seed-0")
            self.killed = int(run.read_json("status.json")["pid"])
            os.kill(self.killed, signal.SIGKILL)


@pytest.fixture(scope="module")
def swept(
    ray_local: str, digits: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Sweep, Watch]:
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "four.toml").write_text(SWEEP)
    watch = Watch(folder)
    overrides = {**RUNS, "data.uri": digits}
    until(lambda: ray.available_resources()["CPU"] == 4.0)
    sweep = lm.connect().tune(folder / "four.toml", set=overrides, out=str(folder), on_event=watch)
    return sweep, watch


def test_what_became_of_each_point(swept: tuple[Sweep, Watch]) -> None:
    sweep, _ = swept
    learns, fails, stays, fails_too = sweep.result.points
    assert [p.state for p in sweep.result.points] == ["finished", "failed", "stopped", "failed"]
    assert (learns.rounds, stays.rounds) == (4, 2)
    assert "graph.k = 500 is not below the number of nodes" in str(fails.error)
    assert fails.error == fails_too.error
    assert sweep.best is learns
    # the score is the last one on the validation samples; of the test split nothing is read
    run = RunDir(f"{sweep.uri}/points/0000/seed-0")
    scores = [r for r in run.read_lines("metrics.jsonl") if r["kind"] == "eval"]
    assert [(r["epoch"], r["split"]) for r in scores] == [(e, "val") for e in (1, 2, 3, 4)]
    assert learns.scores == (scores[-1]["accuracy"],)
    assert not [p for p in Path(sweep.uri).rglob("*.json*") if "test/" in p.read_text()]


def test_a_point_whose_process_was_killed_went_on_from_its_checkpoint(
    swept: tuple[Sweep, Watch],
) -> None:
    _, watch = swept
    assert watch.killed
    begun = [e["point"] for e in watch.events if e["kind"] == "point begins"]
    assert begun == [0, 0, 1, 2, 3]
    rounds = [e["round"] for e in watch.events if e["kind"] == "point round" and e["point"] == 0]
    assert rounds == sorted(set(rounds))
    # one run at a time holds its two shards and its worker, half a CPU each
    assert min(watch.cpus_free) >= 4.0 - 1.5


def test_a_stopped_run_says_so_and_keeps_no_checkpoints(swept: tuple[Sweep, Watch]) -> None:
    sweep, _ = swept
    run = RunDir(f"{sweep.uri}/points/0002/seed-0")
    status = run.read_json("status.json")
    assert status["state"] == "paused"
    assert status["reason"] == "the sweep gave the point up after round 2"
    assert not run.exists("checkpoints")
    assert not run.names("store_log")


def test_nothing_is_left(swept: tuple[Sweep, Watch]) -> None:
    job = ray.get_runtime_context().get_job_id()
    remove_orphans()  # finds nothing to do
    until(lambda: ray.available_resources()["CPU"] == 4.0)
    groups = ray.util.placement_group_table().values()
    assert {group["state"] for group in groups} == {"REMOVED"}

    def left() -> set[str]:
        mine = [a for a in actors().values() if a["JobID"] == job]
        mine = [a for a in mine if a["ActorClassName"] not in RAYS]
        assert {a["ActorClassName"] for a in mine} >= {"ShardActor", "TrainController", "_Board"}
        return {a["ActorClassName"] for a in mine if a["State"] != "DEAD" or is_alive(a["Pid"])}

    until(lambda: not left())
