"""`labelmesh status`: what it reads, and what it says about it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from labelmesh.cluster import cli, status_command
from labelmesh.cluster.status import doing, examine, facts, find_runs
from labelmesh.trainers.run_dir import RunDir
from labelmesh.trainers.run_status import Pace, RunStatus

STATUS = RunStatus(
    name="first",
    method="dag",
    started_at=0.0,
    updated_at=1000.0,
    host="node-1",
    pid=77,
    state="training",
    restarts=2,
    losses=1,
    epoch=3,
    epochs=40,
    phase="mixed",
    step=260,
    num_steps=3200,
    loss=0.41,
    samples_per_s=1240.4,
    round=3,
    searched_share=0.25,
    recall=1.0,
    coverage=0.9,
    checkpoint="epoch-0003",
    checkpoint_at=940.0,
    num_workers=2,
    num_shards=1,
    trainers={"0": "10.0.0.2", "1": "10.0.0.1"},
    waiting_puts={"0": 4},
    resume="labelmesh train dag-digits --name first --resume",
    pace=Pace(900.0, 160),
)

Write = Callable[..., RunDir]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def make(name: str, **changes: Any) -> RunDir:
        run = RunDir(str(tmp_path / "runs" / name))
        run.write_text("config.toml", 'name = "x"\n[method]\nname = "dag"\n')
        if changes:
            run.write_json("status.json", replace(STATUS, **changes).as_json())
        return run

    return make


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "epoch 4/40, mixed, step 260/3,200"),
        ({"state": "warm-up", "step": 20}, "warm-up, step 20/3,200"),
        ({"state": "round", "round": 4, "stage": "search"}, "round 4, search"),
        ({"step": None}, "training"),
        ({"state": "baseline"}, "baseline"),
        ({"state": "waiting"}, "waiting"),
    ],
)
def test_where_a_run_is_in_a_few_words(changes: dict[str, Any], expected: str) -> None:
    assert doing(replace(STATUS, **changes)) == expected


def test_a_live_run_with_all_that_is_known(write: Write) -> None:
    entry = examine(write("first", state="training"), 1000.0)
    assert (entry["state"], entry["advice"], entry["silent_s"]) == ("training", None, None)
    assert entry["seconds_left"] == pytest.approx(2940.0)
    assert facts(entry) == {
        "state": "epoch 4/40, mixed, step 260/3,200",
        "progress": "8.1 %, 49:00 left",
        "restarts": "2 (1 after losses)",
        "loss": "0.4100",
        "speed": "1,240 samples/s",
        "graph": "25.0 % searched, 100.0 % recall, 90.0 % coverage",
        "workers": "2 on 10.0.0.1, 10.0.0.2",
        "shards": "1",
        "waiting writes": "shard 0: 4",
        "checkpoint": "epoch-0003, 1:00 ago",
        "run": entry["run"],
    }


def test_a_driver_that_is_silent_is_missed_and_the_way_on_is_told(write: Write) -> None:
    entry = examine(write("first", state="training"), 1180.0)
    assert (entry["state"], entry["last_state"], entry["seconds_left"]) == (
        "gone",
        "training",
        None,
    )
    assert entry["advice"] == (
        "no sign of life for 3:00: has the driver (process 77 on node-1) gone? Go on with: "
        "labelmesh train dag-digits --name first --resume"
    )


def test_runs_that_ended_are_not_missed(write: Write) -> None:
    failed = examine(write("failed", state="failed", reason="disk full"), 1e6)
    assert (failed["state"], facts(failed)["state"]) == ("failed", "failed: disk full")
    paused = examine(write("paused", state="paused"), 1e6)
    assert paused["advice"] == "go on with: labelmesh train dag-digits --name first --resume"
    # Its driver died after the result was there.
    done = write("done", state="finishing")
    done.write_json("result.json", {})
    entry = examine(done, 1e6)
    assert (entry["state"], entry["progress"], entry["advice"]) == ("finished", 1.0, None)
    assert examine(write("old"), 1e6)["state"] == "unfinished"


def test_a_run_or_a_folder_of_runs_is_found(write: Write, tmp_path: Path) -> None:
    write("b")
    write("a", state="training")
    (tmp_path / "runs" / "cache").mkdir()
    names = [run.uri.rsplit("/", 1)[-1] for run in find_runs(str(tmp_path / "runs"))]
    assert names == ["a", "b"]
    assert [run.uri for run in find_runs(str(tmp_path / "runs" / "a"))] == [
        str(tmp_path / "runs" / "a")
    ]
    assert find_runs(str(tmp_path / "nothing")) == []


def call(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["status", *arguments])
    return ended.value.code


def test_command_prints_one_run_several_and_json(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write("first", state="failed", reason="disk\x1b]0;full")
    assert call(first.uri) == 0
    out = capsys.readouterr().out
    assert "failed: disk\\x1b]0;full" in out
    assert "epoch-0003" in out
    write("second", state="finished")
    assert call(str(tmp_path / "runs")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["name", "first", "second"]
    assert call(str(tmp_path / "runs"), "--json") == 0
    found = json.loads(capsys.readouterr().out)["runs"]
    assert [(entry["name"], entry["state"]) for entry in found] == [
        ("first", "failed"),
        ("second", "finished"),
    ]


def test_watching_ends_when_all_runs_have(
    write: Write, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, slept = write("first", state="training", updated_at=1e12), []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        write("first", state="finished", test_accuracy=0.75)

    monkeypatch.setattr(status_command.time, "sleep", sleep)
    assert call(run.uri, "--watch") == 0
    assert slept == [2.0]
    assert "75.0 %" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no runs in 'nowhere'"),
        (["nowhere", "--watch", "--json"], "--watch shows runs alone"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2
    assert message in capsys.readouterr().err


def test_the_cluster_is_shown_beside_the_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    node = {"host": "head", "ip": "10.0.0.1", "memory_gib": 64.0}
    node |= {"cpus": 8.0, "cpus_used": 1.5, "gpus": 2.0, "gpus_used": 0.0}
    job = {"id": "job-1", "status": "RUNNING", "seconds": 5.0, "command": "train dag-digits"}
    answer = {"address": "http://head:8265", "ray": "2.60.0", "nodes": [node], "jobs": [job]}
    asked = []

    def ask(address: str | None) -> dict[str, Any]:
        asked.append(address)
        return answer

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(status_command, "_ask_cluster", ask)
    assert call("--cluster") == 0
    out = capsys.readouterr().out
    assert "Ray 2.60.0 at http://head:8265" in out
    assert "1.5 of 8" in out
    assert "RUNNING" in out
    assert call("--address", "http://head:8265", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"runs": [], "cluster": answer}
    assert asked == [None, "http://head:8265"]
