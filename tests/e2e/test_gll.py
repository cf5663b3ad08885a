"""Runs that train through the graph learning layer: base rows, switch, prediction, evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import labelmesh as lm
import numpy as np
import pytest
import torch
from labelmesh.cluster.api import Run
from labelmesh.cluster.evaluate import evaluate, evaluate_run
from labelmesh.datasets.manifest import splits_of
from labelmesh.datasets.reader import Reader
from labelmesh.datasets.truth import load_truth
from safetensors.torch import load_file

FAST = {
    "train.engine": "local",
    "train.threads_per_worker": 1,
    "train.num_workers": 1,
    "train.epochs": 2,
    "train.warmup_steps": 3,
    "train.steps_per_epoch": 3,
    "train.baseline_steps": 0,
    "train.batch_size": 32,
    "train.labeled_per_batch": 8,
    "data.num_nodes": 200,
    "data.val_share": 0.1,
    "graph.k": 6,
    "model.feature_dim": 16,
}


def train(digits: str, out: Path, name: str, **changes: Any) -> Run:
    overrides = {**FAST, "data.uri": digits} | {k.replace("__", "."): v for k, v in changes.items()}
    return lm.connect().train("gll-digits", set=overrides, name=name, out=str(out), report=False)


@pytest.fixture(scope="module")
def finished(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(digits, tmp_path_factory.mktemp("runs"), "run")


def test_the_model_holds_nodes_with_labels_of_the_last_round_as_base_rows(finished: Run) -> None:
    state = load_file(finished.path / "model.safetensors")
    labels = finished.labels()["label"].to_numpy()
    assert state["base_features"].shape == (200, 16)
    assert torch.bincount(state["base_labels"]).tolist() == np.bincount(labels).tolist()


def test_prediction_repeats_the_test_accuracy(finished: Run, digits: str) -> None:
    rows = splits_of(digits)["test"]
    images = Reader(digits, rows, torch.full((len(rows),), -1)).read(torch.arange(len(rows))).inputs
    probs = finished.predict(images)
    torch.testing.assert_close(probs.sum(1), torch.ones(len(rows)), rtol=1e-5, atol=1e-5)
    right = float((probs.argmax(1) == load_truth(digits, rows)).float().mean())
    assert right == pytest.approx(finished.metrics["test/accuracy"], abs=1e-6)
    assert finished.predict(images[:1]).shape == (1, 10)
    assert finished.predict(images[:0]).shape == (0, 10)


def test_evaluation_repeats_the_test_accuracy_and_attacks_lower_it(finished: Run) -> None:
    clean = finished.evaluate()
    assert clean["accuracy"] == pytest.approx(finished.metrics["test/accuracy"], abs=1e-9)
    assert clean["accuracy_under_attack"] is None
    assert clean["count"] == 359
    weak, strong = (finished.evaluate(attack="fgsm", eps=eps, count=100) for eps in (0.0, 0.4))
    assert weak["accuracy_under_attack"] == weak["accuracy"] == strong["accuracy"]
    assert strong["accuracy_under_attack"] < strong["accuracy"]
    assert strong["mean_linf"] == pytest.approx(0.4, abs=1e-4)
    assert 0 <= strong["zero_gradient_share"] < 0.5


def test_the_nearest_other_class_is_nearer_than_the_ball(finished: Run) -> None:
    found = finished.evaluate(attack="cw", count=40, searches=2, cw_steps=30, lr=0.05)
    assert found["accuracy_under_attack"] < found["accuracy"]
    assert 0 < found["mean_l2"] < 8
    assert found["eps"] is None


def test_the_same_samples_are_taken_for_every_run(finished: Run) -> None:
    results = [evaluate_run(finished.uri, count=30, split="val") for _ in range(2)]
    assert results[0]["accuracy"] == results[1]["accuracy"]
    assert results[0]["count"] == 30


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"split": "train"}, "choose from test, val"),
        ({"count": 0}, "must be 1 or more"),
        ({"attack": "deepfool"}, "known are fgsm, ifgsm, cw"),
        ({"attack": "ifgsm", "step_size": 0.0}, "must be 1 or more, and > 0"),
        ({"attack": "fgsm", "eps": -1.0}, "must be >= 0"),
    ],
)
def test_bad_options_of_an_evaluation_are_refused(
    finished: Run, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        finished.evaluate(**options)


def test_the_command_prints_a_row_per_attack_and_eps(
    finished: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate([finished.uri], attack=["fgsm", "ifgsm"], eps=[0.0, 0.2], count=20, json=True)
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [(r["attack"], r["eps"]) for r in rows] == [
        ("fgsm", 0.0),
        ("fgsm", 0.2),
        ("ifgsm", 0.0),
        ("ifgsm", 0.2),
    ]
    assert {r["method"] for r in rows} == {"gll"}
    evaluate([finished.uri], count=20)
    table = capsys.readouterr().out.splitlines()
    assert table[0].split() == ["run", "method", "split", "count", "accuracy", "seconds"]
    assert len(table) == 2


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no finished run"):
        evaluate_run(str(tmp_path))


def test_the_switch_comes_at_its_epoch(digits: str, tmp_path: Path) -> None:
    changes = {"method__switch_epoch": 1, "method__pseudo": "none"}
    run = train(digits, tmp_path, "switch", **changes, method__predict_per_class=3)
    lines = [r for r in run.dir.read_lines("metrics.jsonl") if r["kind"] == "train"]
    assert [(r["epoch"], r["phase"]) for r in lines] == [(0, "warmup"), (0, "linear"), (1, "graph")]
    state = load_file(run.path / "model.safetensors")
    assert torch.bincount(state["base_labels"]).tolist() == [3] * 10
    assert state["base_features"].shape == (30, 16)
    assert not (run.path / "store").exists()


def test_a_switch_after_the_end_leaves_a_linear_head(digits: str, tmp_path: Path) -> None:
    run = train(digits, tmp_path, "linear", method__switch_epoch=2, method__pseudo="none")
    assert "classifier.weight" in load_file(run.path / "model.safetensors")
    assert run.predict(torch.zeros(2, 1, 8, 8, dtype=torch.uint8)).shape == (2, 10)


def test_base_rows_by_uncertainty_are_read_from_the_last_round(
    digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from labelmesh.trainers import loop

    seen: list[tuple[int, int | None, list[int]]] = []
    undisturbed = loop.base_set

    def spy(training: Any, phase: Any, *, round: int | None) -> Any:
        made = undisturbed(training, phase, round=round)
        seen.append((training.epoch, round, made.take(0, 0).tolist()))
        if round is not None:
            labeled = (training.labels >= 0).nonzero().flatten()
            score = training.source.store.read("base_score", labeled, round=round)
            best = labeled[score == score.max()][0]
            assert int(best) in seen[-1][2]
        return made

    monkeypatch.setattr(loop, "base_set", spy)
    changes = {"base_choice": "entropy", "local_max": True, "pseudo": "none", "base_per_class": 1}
    train(digits, tmp_path, "score", **{f"method__{k}": v for k, v in changes.items()})
    assert [(epoch, round) for epoch, round, _ in seen] == [(0, None), (0, 0), (1, 1)]
    assert all(len(rows) == 10 for _, _, rows in seen)


def test_adversarial_training_runs(digits: str, tmp_path: Path) -> None:
    changes = {"method.adversarial.eps": 0.1, "method.adversarial.steps": 2}
    overrides = {**FAST, "data.uri": digits, "train.epochs": 1, **changes}
    run = lm.connect().train(
        "gll-digits", set=overrides, name="pgd", out=str(tmp_path), report=False
    )
    assert 0 < run.metrics["test/accuracy"] <= 1
    assert json.loads(json.dumps(run.metrics)) == run.metrics
