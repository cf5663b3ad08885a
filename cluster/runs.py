"""The runs in a folder, from the files that each of them leaves."""

from __future__ import annotations

import time
import tomllib
from typing import Any

from ..trainers.run_dir import RunDir
from .status import examine


def list_runs(folder: str) -> list[dict[str, Any]]:
    """One entry per run in `folder` (a path or URI), by name; empty if there is no such folder.

    `state` is what `labelmesh status` says: "training", "failed", "gone" ...; "finished" once the
    run has written its result, and "unfinished" for a run without a status.
    """
    place = RunDir(folder)
    names = [name for name in place.names("") if place.exists(f"{name}/config.toml")]
    return [_describe(RunDir(place.child(name)), name) for name in names]


def _describe(run: RunDir, name: str) -> dict[str, Any]:
    config = tomllib.loads(run.read_text("config.toml"))
    result = run.read_json("result.json") if run.exists("result.json") else {}
    lines = run.read_lines("metrics.jsonl")
    begun = [line["epoch"] for line in lines if line.get("kind") == "train"]
    return {
        "name": name,
        "method": config.get("method", {}).get("name"),
        "state": examine(run, time.time())["state"],
        "epochs": max(begun) + 1 if begun else 0,
        "test_accuracy": result.get("test/accuracy"),
        "baseline_test_accuracy": result.get("baseline/test/accuracy"),
        "path": run.uri,
    }
