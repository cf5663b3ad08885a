"""The list of runs."""

from __future__ import annotations

import json
from pathlib import Path

from labelmesh.cluster.runs import list_runs


def test_runs_are_listed_with_their_state(tmp_path: Path) -> None:
    for name in ("b-done", "a-started"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.toml").write_text('name = "x"\n[method]\nname = "dag"\n')
    lines = [{"kind": "train", "epoch": 3, "step": 9}, {"kind": "eval", "epoch": 4}]
    (tmp_path / "a-started" / "metrics.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines)
    )
    (tmp_path / "b-done" / "result.json").write_text('{"test/accuracy": 0.9}')
    (tmp_path / "no-run").mkdir()
    started, done = list_runs(str(tmp_path))
    assert started == {
        "name": "a-started",
        "method": "dag",
        "state": "unfinished",
        "epochs": 4,
        "test_accuracy": None,
        "baseline_test_accuracy": None,
        "path": f"{tmp_path}/a-started",
    }
    assert (done["state"], done["test_accuracy"]) == ("finished", 0.9)


def test_a_folder_that_is_not_there_has_no_runs(tmp_path: Path) -> None:
    assert list_runs(str(tmp_path / "runs")) == []
