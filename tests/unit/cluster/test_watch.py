"""What looks at a run while it goes on, and how it ends."""

from __future__ import annotations

import logging
import shlex
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from labelmesh.cluster.watch import resume_command, watched, with_addresses
from labelmesh.trainers.config import RunSpec, parse_overrides, parse_spec
from labelmesh.trainers.heartbeat import read_status
from labelmesh.trainers.outcome import RunPaused
from labelmesh.trainers.run_dir import RunDir
from labelmesh.trainers.run_status import RunStatus
from labelmesh.trainers.tracking import open_tracker

SPEC = {
    "name": "first",
    "data": {"uri": "d"},
    "method": {"name": "lpdssl"},
    "train": {"epochs": 2, "engine": "local"},
}


def watch(run: RunDir, spec: RunSpec, error: BaseException | None) -> tuple[RunStatus, list[str]]:
    """What remains of a run that took one checkpoint and then ended with `error`."""
    seen: list[dict[str, Any]] = []
    tracker = open_tracker(spec, run, num_nodes=10)
    expected = nullcontext() if error is None else pytest.raises(type(error))
    with expected, watched(spec, run, tracker, resume="again", on_event=seen.append) as tell:
        tell({"kind": "checkpoint", "name": "epoch-0001", "seconds": 1.0})
        tell({"kind": "train"})  # no step: nobody can show it
        if error is not None:
            raise error
    status = read_status(run)
    assert status is not None
    return status, [str(event["kind"]) for event in seen]


@pytest.mark.parametrize(
    ("error", "state", "reason"),
    [
        (None, "finished", None),
        (OSError("s3://key:secret@bucket is full"), "failed", "s3://***@bucket is full"),
        (RunPaused("stopped by SIGTERM"), "paused", "stopped by SIGTERM"),
        (KeyboardInterrupt(), "stopped", "KeyboardInterrupt"),
    ],
)
def test_the_status_says_how_a_run_ended(
    error: BaseException | None,
    state: str,
    reason: str | None,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING):
        status, kinds = watch(RunDir(str(tmp_path / "run")), parse_spec(SPEC), error)
    assert (status.state, status.reason) == (state, reason)
    assert (status.checkpoint, status.resume, status.num_shards) == ("epoch-0001", "again", None)
    assert kinds == ["checkpoint", "train"]
    assert "an event of kind 'train' is not shown" in caplog.text


def test_the_command_to_go_on_is_the_one_that_began() -> None:
    overrides = {
        "graph.k": 32,
        "data.uri": "s3://key:secret@bucket/my data",
        "method.name": "dag",
        "train.betas": [0.9, 0.99],
        "model.freeze": True,
        "data.split_dataset": "7",
    }
    command = resume_command("dag-digits", overrides, name="a b", out="runs")
    assert command is not None
    words = shlex.split(command)
    assert words[:3] == ["labelmesh", "train", "dag-digits"]
    assert words[-5:] == ["--name", "a b", "--out", "runs", "--resume"]
    given = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    assert parse_overrides(given) == {**overrides, "data.uri": "s3://***@bucket/my data"}
    assert resume_command(parse_spec(SPEC), {}, name=None, out=None) is None


def test_people_see_addresses_of_nodes() -> None:
    events: list[dict[str, Any]] = [
        {"kind": "workers", "nodes": {0: "f00", 1: "ba5"}, "pids": {0: 1, 1: 2}},
        {"kind": "shards", "shards": {0: {"node": "f00", "pid": 3}}},
        {"kind": "train", "step": 1},
    ]
    workers, shards, train = (with_addresses(e, lambda: {"f00": "10.0.0.1"}) for e in events)
    assert workers["nodes"] == {0: "10.0.0.1", 1: "ba5"}
    assert shards["shards"] == {0: {"node": "10.0.0.1", "pid": 3}}
    assert train is events[2]
