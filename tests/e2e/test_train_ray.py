"""Whole runs on Ray: shard actors, DeepSpeed workers, and what must not depend on their number."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import labelmesh as lm
import pytest
import torch
from labelmesh.cluster.api import Run
from labelmesh.cluster.resources import ResourceError
from labelmesh.cluster.status import examine
from labelmesh.trainers.outcome import RunFailed, RunPaused
from safetensors.torch import load_file

pytestmark = pytest.mark.ray

FAST = {
    "train.engine": "deepspeed",
    "train.threads_per_worker": 1,
    "train.epochs": 3,
    "train.warmup_steps": 6,
    "train.steps_per_epoch": 4,
    "train.baseline_steps": 0,
    "train.batch_size": 32,
    "train.labeled_per_batch": 8,
    "data.num_nodes": 200,
    "graph.k": 6,
    "model.feature_dim": 16,
}


def train(
    digits: str,
    out: Path,
    name: str,
    *,
    resume: bool = False,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    **changes: Any,
) -> Run:
    overrides = {
        **FAST,
        "data.uri": digits,
        **{k.replace("__", "."): v for k, v in changes.items()},
    }
    return lm.connect().train(
        "dag-digits",
        set=overrides,
        name=name,
        out=str(out),
        resume=resume,
        on_event=on_event,
        report=False,
    )


@pytest.fixture(scope="module")
def two_by_two(
    digits: str, tmp_path_factory: pytest.TempPathFactory, ray_local: str
) -> tuple[Run, list[dict[str, Any]]]:
    """A run on two shards and two workers, and the progress that the driver saw."""
    events: list[dict[str, Any]] = []
    overrides = {**FAST, "data.uri": digits, "graph.num_shards": 2, "train.num_workers": 2}
    overrides["train.checkpoint_every_steps"] = 5  # the last one: one step into the third epoch
    out = str(tmp_path_factory.mktemp("runs"))
    run = lm.connect().train(
        "dag-digits", set=overrides, name="two", out=out, on_event=events.append
    )
    return run, events


def test_driver_sees_rounds_steps_and_the_end(
    two_by_two: tuple[Run, list[dict[str, Any]]],
) -> None:
    run, events = two_by_two
    kinds = [e["kind"] for e in events]
    assert kinds[0] == "attempt"
    assert kinds.count("start") == 1
    seen = [sorted(e["pids"]) for e in events if e["kind"] == "workers"]
    assert seen[-1] == [0, 1]  # they may join between two looks
    assert len(seen) <= 2
    assert [e["round"] for e in events if e["kind"] == "round"] == [0, 1, 2, 3]
    said = [e for e in events if e["kind"] != "queues"]
    assert said[-1]["accuracy"] == run.metrics["test/accuracy"]
    status = examine(run.dir, 0.0)
    assert (status["state"], status["num_workers"], status["restarts"]) == ("finished", 2, 0)
    assert sorted(status["trainers"]) == sorted(status["shards"]) == ["0", "1"]
    assert (run.path / "report.html").is_file()


def test_result_does_not_depend_on_shards_and_workers(
    two_by_two: tuple[Run, list[dict[str, Any]]], digits: str, tmp_path: Path
) -> None:
    one = train(digits, tmp_path, "one", graph__num_shards=1, train__num_workers=1)
    two = two_by_two[0]
    a, b = (load_file(r.path / "model.safetensors") for r in (one, two))
    for name, expected in a.items():
        # Two gradients are added in another order; the rest is the same arithmetic.
        torch.testing.assert_close(b[name], expected, rtol=1e-3, atol=1e-5)
    assert one.labels()["key"].equals(two.labels()["key"])
    assert one.labels()["label"].equals(two.labels()["label"])
    assert one.metrics["test/accuracy"] == two.metrics["test/accuracy"]


def test_resumed_on_two_workers_continues_bit_for_bit(
    two_by_two: tuple[Run, list[dict[str, Any]]], digits: str
) -> None:
    whole = two_by_two[0]
    out = whole.path.parent
    # What a crash after the checkpoint within the third epoch leaves behind.
    assert (whole.path / "checkpoints/epoch-0002-step-00000015").is_dir()
    shutil.copytree(whole.path, out / "crashed")
    for lost in ("result.json", "model.safetensors", "labels.parquet"):
        (out / "crashed" / lost).unlink()
    for lost in ("store", "checkpoints/epoch-0003", "ray_train"):
        shutil.rmtree(out / "crashed" / lost)
    config = (out / "crashed" / "config.toml").read_text()
    (out / "crashed" / "config.toml").write_text(config.replace('"two"', '"crashed"'))
    resumed = train(
        digits,
        out,
        "crashed",
        resume=True,
        graph__num_shards=2,
        train__num_workers=2,
        train__checkpoint_every_steps=5,
    )
    a, b = (load_file(r.path / "model.safetensors") for r in (whole, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert whole.labels().equals(resumed.labels())


def test_more_than_the_cluster_has_is_refused_with_numbers(
    digits: str, tmp_path: Path, ray_local: str
) -> None:
    with pytest.raises(ResourceError, match=r"needs 9 CPUs \(1 trainers x 8, 2 shards x 0.5\)"):
        train(digits, tmp_path, "big", resources__cpus_per_trainer=8, train__num_workers=1)
    assert not (tmp_path / "big").exists()


def test_failure_in_a_worker_is_one_sentence(digits: str, tmp_path: Path, ray_local: str) -> None:
    broken = tmp_path / "digits"
    shutil.copytree(digits, broken)
    for shard in (broken / "shards").glob("train-*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))
    with pytest.raises(RunFailed, match="16 of 200 samples cannot be read"):
        train(str(broken), tmp_path, "broken", train__num_workers=2)


class Killer:
    """Ends processes of a run with SIGKILL, at moments that the run's own records tell of."""

    def __init__(self) -> None:
        self.trainers: dict[int, int] = {}
        self.shards: dict[int, int] = {}
        self.kinds: list[str] = []
        self.done: set[str] = set()

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        self.kinds.append(kind)
        if kind == "workers":
            self.trainers = event["pids"]
        if kind == "shards":
            self.shards = {rank: shard["pid"] for rank, shard in event["shards"].items()}
        stage = (event.get("stage"), event.get("round"))
        if stage == ("extract", 0):  # nothing is committed yet
            self.kill("shard in the first round", self.shards.get(1))
        if kind == "train" and event["epoch"] == 1 and not event.get("baseline"):
            self.kill("trainer after a checkpoint", self.trainers.get(1))
        if stage == ("search", 2) and "trainer after a checkpoint" in self.done:
            self.kill("shard in an update", self.shards.get(0))

    def kill(self, what: str, pid: int | None) -> None:
        if what not in self.done and pid is not None:
            self.done.add(what)
            os.kill(pid, signal.SIGKILL)


def test_killed_trainers_and_shards_change_nothing(
    two_by_two: tuple[Run, list[dict[str, Any]]], digits: str, tmp_path: Path
) -> None:
    whole, killer = two_by_two[0], Killer()
    hurt = train(
        digits,
        tmp_path,
        "hurt",
        on_event=killer,
        graph__num_shards=2,
        train__num_workers=2,
        train__checkpoint_every_steps=5,
    )
    assert killer.done == {
        "shard in the first round",
        "trainer after a checkpoint",
        "shard in an update",
    }
    # Killed shards come back by themselves; a killed trainer costs an attempt.
    assert killer.kinds.count("lost") == 1
    assert killer.kinds.count("attempt") == 2
    a, b = (load_file(r.path / "model.safetensors") for r in (whole, hurt))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert whole.labels().equals(hurt.labels())
    rounds = [r.dir.read_lines("rounds.jsonl") for r in (whole, hurt)]
    assert [r["round"] for r in rounds[1]] == [0, 1, 2, 3]
    assert [r["coverage"] for r in rounds[0]] == [r["coverage"] for r in rounds[1]]
    assert not (hurt.path / "store_log").exists()


def test_a_paused_run_goes_on_with_other_workers_and_shards(
    two_by_two: tuple[Run, list[dict[str, Any]]], digits: str, tmp_path: Path
) -> None:
    def stop(event: dict[str, Any]) -> None:
        if event["kind"] == "shards":  # heard at the end of the first epoch
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(RunPaused, match=r"SIGTERM.*epoch-0001; .*--resume"):
        train(digits, tmp_path, "elastic", on_event=stop, train__num_workers=[1, 2])
    resumed = train(
        digits, tmp_path, "elastic", resume=True, train__num_workers=1, graph__num_shards=3
    )
    a, b = (load_file(r.path / "model.safetensors") for r in (two_by_two[0], resumed))
    for name, expected in a.items():
        torch.testing.assert_close(b[name], expected, rtol=1e-3, atol=1e-5)
    assert two_by_two[0].labels()["label"].equals(resumed.labels()["label"])
