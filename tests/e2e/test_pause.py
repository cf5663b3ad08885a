"""A run that is asked to stop makes a checkpoint first, and goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import labelmesh as lm
import pytest
import torch
from labelmesh.cluster.api import Run
from labelmesh.trainers.outcome import RunPaused
from labelmesh.trainers.run_dir import RunDir
from safetensors.torch import load_file

FAST = {
    "train.engine": "local",
    "train.threads_per_worker": 1,
    "train.epochs": 2,
    "train.warmup_steps": 2,
    "train.steps_per_epoch": 22,
    "train.baseline_steps": 0,
    "train.batch_size": 16,
    "train.labeled_per_batch": 8,
    "data.num_nodes": 120,
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
    changes: dict[str, Any] | None = None,
) -> Run:
    overrides = {**FAST, "data.uri": digits, **(changes or {})}
    return lm.connect().train(
        "dag-digits", set=overrides, name=name, out=str(out), resume=resume, on_event=on_event
    )


def stop_at(epoch: int) -> Callable[[dict[str, Any]], None]:
    """SIGTERM to this process at the first record of an epoch's steps."""
    sent: list[bool] = []

    def on_event(event: dict[str, Any]) -> None:
        if event["kind"] == "stage" and event.get("stage") == "solve" and not sent:
            sent.append(event["round"] >= epoch)
            if sent.pop():
                sent.append(True)
                os.kill(os.getpid(), signal.SIGTERM)

    return on_event


def test_stopped_and_resumed_is_as_if_undisturbed(digits: str, tmp_path: Path) -> None:
    first = {"train.pause_after": 1}
    with pytest.raises(RunPaused, match=r"epoch-0001, as train\.pause_after asks"):
        train(digits, tmp_path, "parts", changes=first)
    assert [r["round"] for r in RunDir(f"{tmp_path}/parts").read_lines("rounds.jsonl")] == [0]
    parts = train(digits, tmp_path, "parts", resume=True)
    whole = train(digits, tmp_path, "whole")
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RunPaused, match=r"SIGTERM.*epoch-0001-step-00000034.*--resume"):
        train(digits, tmp_path, "stopped", on_event=stop_at(1))
    assert signal.getsignal(signal.SIGTERM) == handler
    resumed = train(digits, tmp_path, "stopped", resume=True)
    a, b, c = (load_file(r.path / "model.safetensors") for r in (whole, resumed, parts))
    assert all(torch.equal(a[name], b[name]) and torch.equal(a[name], c[name]) for name in a)
    assert whole.labels().equals(resumed.labels())
    assert whole.labels().equals(parts.labels())
    assert [r["round"] for r in resumed.dir.read_lines("rounds.jsonl")] == [0, 1, 2]
