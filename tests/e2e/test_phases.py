"""Epochs of several phases: who is visited, and runs that stop within an epoch."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import labelmesh as lm
import pytest
import torch
from labelmesh.cluster.api import Run
from labelmesh.trainers import loop
from labelmesh.trainers.method import Batch, Loss, NetworkCall
from labelmesh.trainers.methods.cyclecluster import CycleCluster
from safetensors.torch import load_file

FAST = {
    "train.engine": "local",
    "train.threads_per_worker": 1,
    "train.num_workers": 1,
    "train.epochs": 2,
    "train.warmup_steps": 6,
    "train.baseline_steps": 0,
    "train.batch_size": 32,
    "train.labeled_per_batch": 8,
    "data.num_nodes": 200,
    "data.val_share": 0.0,
    "model.feature_dim": 16,
}


def train(digits: str, out: Path, config: str, name: str, **changes: Any) -> Run:
    resume = changes.pop("resume", False)
    graph = {} if config == "freematch-digits" else {"graph.k": 6}
    overrides = {**FAST, **graph, "data.uri": digits}
    overrides |= {k.replace("__", "."): v for k, v in changes.items()}
    return lm.connect().train(
        config, set=overrides, name=name, out=str(out), resume=resume, report=False
    )


def test_every_phase_visits_its_nodes_once_an_epoch(
    digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, int, list[int], list[int]]] = []
    undisturbed = CycleCluster.loss

    def recorded(self: CycleCluster, net: NetworkCall, batch: Batch) -> Loss:
        rows = batch.node_ids.tolist(), batch.labels.tolist()
        seen.append((batch.phase, int(batch.epoch), *rows))
        return undisturbed(self, net, batch)

    monkeypatch.setattr(CycleCluster, "loss", recorded)
    train(digits, tmp_path, "cyclecluster-digits", "run")
    assert [p for p, _, _, _ in seen[:12]] == ["warmup"] * 12  # two micro-batches a step
    order = [(phase, epoch) for phase, epoch, _, _ in seen[12:]]
    assert list(dict.fromkeys(order)) == [
        ("cluster", 0),
        ("label", 0),
        ("cluster", 1),
        ("label", 1),
    ]
    for epoch in range(2):
        visits = Counter(
            i for p, e, ids, _ in seen[12:] if (p, e) == ("cluster", epoch) for i in ids
        )
        assert visits == Counter(range(200))
        visits = Counter(
            i
            for p, e, ids, labels in seen[12:]
            if (p, e) == ("label", epoch)
            for i, label in zip(ids, labels)
            if label < 0
        )
        assert len(visits) == 160
        assert set(visits.values()) == {1}


class Killed(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("config", "phase", "phase_step"),
    [("cyclecluster-digits", 1, 3), ("freematch-digits", 0, 2)],
)
def test_run_interrupted_within_a_phase_continues_bit_for_bit(
    config: str,
    phase: int,
    phase_step: int,
    digits: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {"train__steps_per_epoch": 4, "train__checkpoint_every_steps": 3}
    whole = train(digits, tmp_path, config, "whole", **options)
    undisturbed = loop.save_checkpoint

    def dies_after_it(training: loop.Training) -> None:
        undisturbed(training)
        at = training.position
        if (at.epoch, at.phase, at.phase_step) == (1, phase, phase_step):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", dies_after_it)
        with pytest.raises(Killed):
            train(digits, tmp_path, config, "killed", **options)
    resumed = train(digits, tmp_path, config, "killed", resume=True, **options)
    a, b = (load_file(run.path / "model.safetensors") for run in (whole, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert whole.labels().equals(resumed.labels())
    records = [
        [(r["epoch"], r["step"]) for r in run.dir.read_lines("metrics.jsonl") if "step" in r]
        for run in (whole, resumed)
    ]
    assert records[0] == records[1]
    if whole.dir.exists("rounds.jsonl"):
        rounds = [run.dir.read_lines("rounds.jsonl") for run in (whole, resumed)]
        assert [r["round"] for r in rounds[0]] == [r["round"] for r in rounds[1]]
        assert [r["pseudo_accuracy"] for r in rounds[0]] == [
            r["pseudo_accuracy"] for r in rounds[1]
        ]
