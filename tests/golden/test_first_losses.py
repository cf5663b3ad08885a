"""The first losses of every method: a refactoring leaves them alone.

`first_losses.json` is written by `python tests/golden/test_first_losses.py`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import labelmesh as lm
import pytest
from labelmesh.trainers.method import find_method, method_names

GOLDEN = Path(__file__).with_name("first_losses.json")
FAST = {
    "train.engine": "local",
    "train.threads_per_worker": 1,
    "train.num_workers": 1,
    "train.epochs": 2,
    "train.warmup_steps": 4,
    "train.steps_per_epoch": 3,
    "train.baseline_steps": 0,
    "train.batch_size": 32,
    "train.labeled_per_batch": 8,
    "data.num_nodes": 150,
    "graph.k": 6,
    "model.feature_dim": 16,
}


def losses(method: str, folder: Path) -> list[float]:
    """Mean losses of the warm-up and of each epoch."""
    overrides = {**FAST, "data.uri": str(folder / "digits")}
    if find_method(method)().needs_frozen_backbone:
        del overrides["model.feature_dim"], overrides["train.warmup_steps"]
    config = f"{method.replace('_', '-')}-digits"
    run = lm.connect().train(config, set=overrides, name=method, out=str(folder))
    lines = run.dir.read_lines("metrics.jsonl")
    return [line["loss"] for line in lines if line["kind"] == "train"]


@pytest.mark.parametrize("method", method_names())
def test_first_losses_are_those_of_the_record(method: str, tmp_path: Path) -> None:
    expected = json.loads(GOLDEN.read_text())[method]
    # Other processors add up in another order; anything but rounding is a change.
    assert losses(method, tmp_path) == pytest.approx(expected, rel=2e-3)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        record = {name: losses(name, Path(scratch)) for name in method_names()}
    GOLDEN.write_text(json.dumps(record, indent=1) + "\n")
