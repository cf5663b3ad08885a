"""The sign of life: what is written, when, and that a full disk ends no run."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from labelmesh.trainers.heartbeat import FILE, Heartbeat, read_status
from labelmesh.trainers.run_dir import RunDir
from labelmesh.trainers.run_status import RunStatus

NEW = RunStatus(name="digits", method="dag", started_at=100.0)


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDir:
    if request.param == "local":
        return RunDir(str(tmp_path / "run"))
    return RunDir(f"memory://{tmp_path.name}/run")


def test_status_is_written_and_goes_on_under_another_driver(run: RunDir) -> None:
    now = [200.0]
    first = Heartbeat(run, NEW, clock=lambda: now[0])
    first.record({"kind": "checkpoint", "name": "epoch-0001", "seconds": 1.0})
    first.write()
    seen = read_status(run)
    assert seen is not None
    assert (seen.state, seen.updated_at, seen.checkpoint_at) == ("starting", 200.0, 200.0)
    assert seen.heartbeat_s == (5.0 if run.local_path else 20.0)
    now[0] = 300.0
    second = Heartbeat(run, NEW, clock=lambda: now[0])
    second.close("failed", "no bucket at s3://key:secret@data/x")
    seen = read_status(run)
    assert seen is not None
    assert (seen.state, seen.restarts, seen.checkpoint) == ("failed", 1, "epoch-0001")
    assert seen.reason == "no bucket at s3://***@data/x"


def test_the_thread_writes_at_once_and_ends_with_the_run(run: RunDir) -> None:
    heartbeat = Heartbeat(run, NEW, every_s=3600.0)
    heartbeat.start()
    heartbeat.close("finished")
    seen = read_status(run)
    assert seen is not None
    assert seen.state == "finished"


@pytest.mark.parametrize("content", ["", "[]", '{"state": "training"}', '{"pace": 7}'])
def test_a_status_that_is_none_is_not_read(content: str, run: RunDir) -> None:
    run.write_text(FILE, content)
    assert read_status(run) is None


def test_a_storage_that_refuses_is_told_once(
    run: RunDir, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "write_json", refuse)
    heartbeat = Heartbeat(run, NEW)
    with caplog.at_level(logging.WARNING):
        heartbeat.write()
        heartbeat.write()
    assert len(caplog.records) == 1
    assert "No space left" in caplog.text


def test_half_a_file_is_no_status(run: RunDir) -> None:
    assert read_status(run) is None
    run.write_text(FILE, '{"name": "x"')
    assert read_status(run) is None
