"""Whole runs on pretrained backbones: frozen with cached features, frozen inside, fine-tuned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelmesh.cluster.api import Run
from labelmesh.cluster.driver import drive
from labelmesh.datasets.manifest import splits_of
from labelmesh.datasets.reader import Reader
from labelmesh.datasets.splits import Split
from labelmesh.datasets.truth import load_truth
from labelmesh.trainers.backbones.pretrained import Encoder
from labelmesh.trainers.config import load_config, with_absolute_uris
from labelmesh.trainers.prepare import prepare
from labelmesh.trainers.run_dir import RunDir
from safetensors.torch import load_file
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

transformers = pytest.importorskip("transformers")

WIDTH = 24
FAST: dict[str, Any] = {
    "train.engine": "local",
    "train.threads_per_worker": 1,
    "train.num_workers": 1,
    "train.epochs": 2,
    "train.steps_per_epoch": 4,
    "train.lr": 0.1,
    "train.batch_size": 32,
    "train.labeled_per_batch": 8,
    "train.baseline_steps": 0,
    "train.warmup_steps": 0,
    "data.num_nodes": 200,
    "data.val_share": 0.1,
    "data.weak": "plain",
    "data.strong": "plain",
    "graph.k": 6,
    "graph.num_shards": 1,
    "model.feature_dim": WIDTH,
    "model.freeze": True,
}


def save_model(folder: Path, *, kind: str = "dinov2") -> str:
    """`model.backbone` of a tiny random model in a folder."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if kind == "dinov2":
            config = transformers.Dinov2Config(
                hidden_size=WIDTH,
                num_hidden_layers=2,
                num_attention_heads=2,
                image_size=16,
                patch_size=4,
                initializer_range=0.2,
            )
            model = transformers.Dinov2Model(config)
        else:
            config = transformers.ResNetConfig(
                embedding_size=8, hidden_sizes=[8, WIDTH], depths=[1, 1]
            )
            model = transformers.ResNetModel(config)
    model.save_pretrained(folder)
    told = {"size": {"height": 16, "width": 16}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return f"hf:{folder}"


def train(config: str, digits: str, out: Path, name: str, **changes: Any) -> Run:
    overrides = {**FAST, "data.uri": digits} | {k.replace("__", "."): v for k, v in changes.items()}
    spec = with_absolute_uris(load_config(config, overrides))
    run = RunDir(str(out / name))
    drive(spec, run, prepare(spec, run, resume=False), on_event=lambda event: None)
    return Run(run.uri)


def test_images(digits: str) -> tuple[Tensor, Tensor]:
    rows = splits_of(digits)["test"]
    images = Reader(digits, rows, torch.full((len(rows),), -1)).read(torch.arange(len(rows))).inputs
    return images, load_truth(digits, rows)


test_images.__test__ = False  # type: ignore[attr-defined]


def losses(run: Run) -> list[float]:
    return [line["loss"] for line in run.dir.read_lines("metrics.jsonl") if line["kind"] == "train"]


@pytest.mark.parametrize(("config", "dim"), [("linear-probe-digits", WIDTH), ("dag-digits", 10)])
def test_cached_features_train_like_the_frozen_backbone_inside(
    config: str, dim: int, digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = save_model(tmp_path / "model")
    model: dict[str, Any] = {"model__backbone": name, "model__feature_dim": dim}
    if config == "dag-digits":
        model["method__mixup"] = 0  # of images it is another thing than of features
    else:
        model["train__steps_per_epoch"] = 20
    cached = train(config, digits, tmp_path / "runs", "cached", **model)
    inside = train(
        config, digits, tmp_path / "runs", "inside", **model, model__cache_features=False
    )
    assert losses(cached) == pytest.approx(losses(inside), rel=1e-4)
    assert cached.metrics == pytest.approx(inside.metrics, abs=0.02)
    monkeypatch.setattr(Encoder, "forward", lambda *_: pytest.fail("a forward pass"))
    again = train(config, digits, tmp_path / "runs", "again", **model)
    assert losses(again) == losses(cached)
    shutil.rmtree(tmp_path / "model")
    monkeypatch.undo()
    images, truth = test_images(digits)
    probs = [run.predict(images) for run in (cached, inside)]
    torch.testing.assert_close(probs[0], probs[1], rtol=1e-3, atol=1e-4)
    right = float((probs[0].argmax(1) == truth).float().mean())
    assert right == pytest.approx(cached.metrics["test/accuracy"], abs=0.003)
    assert len(list((tmp_path / "runs" / "cache").glob("features-digits-*"))) == 1
    if config == "dag-digits":
        assert cached.report().exists()
    else:
        assert cached.metrics["test/accuracy"] > 0.3
        clean = cached.evaluate(attack="fgsm", eps=0.3, count=60)
        assert clean["accuracy_under_attack"] < clean["accuracy"]


def test_neighbors_vote_without_a_step(digits: str, tmp_path: Path) -> None:
    name = save_model(tmp_path / "model")
    run = train("knn-digits", digits, tmp_path / "runs", "knn", model__backbone=name, method__k=3)
    shutil.rmtree(tmp_path / "model")
    assert run.metrics["steps"] == 0
    assert "baseline/test/accuracy" not in run.metrics
    state = load_file(run.path / "model.safetensors")
    split = Split.load(str(run.path / "split.parquet"))
    assert len(state["base_labels"]) == int((split.labels >= 0).sum())
    images, truth = test_images(digits)
    network = run._predictor._network
    with torch.no_grad():
        seen = network.features(run._predictor.normalize(images))
    theirs = KNeighborsClassifier(
        3, metric="cosine", algorithm="brute", weights=lambda d: np.exp((1 - d) / 0.07)
    ).fit(state["base_features"].numpy(), state["base_labels"].numpy())
    probs = run.predict(images.numpy())
    np.testing.assert_allclose(probs, _all_classes(theirs, seen), atol=1e-3)
    right = float((torch.from_numpy(probs).argmax(1) == truth).float().mean())
    assert right == pytest.approx(run.metrics["test/accuracy"], abs=0.003)


def _all_classes(classifier: KNeighborsClassifier, features: Tensor) -> Any:
    found = classifier.predict_proba(features.numpy())
    out = np.zeros((len(found), 10))
    out[:, classifier.classes_] = found
    return out


def test_batch_norm_of_a_frozen_backbone_does_not_move(digits: str, tmp_path: Path) -> None:
    name = save_model(tmp_path / "model", kind="resnet")
    changes = {"model__cache_features": False, "data__weak": "crop", "train__micro_batches": 4}
    run = train(
        "supervised-digits", digits, tmp_path / "runs", "run", model__backbone=name, **changes
    )
    source = load_file(tmp_path / "model" / "model.safetensors")
    state = load_file(run.path / "model.safetensors")
    prefix = "backbone.0.module.encoder.model."
    assert {key for key in state if key.startswith(prefix)} == {prefix + key for key in source}
    assert all(torch.equal(state[prefix + key], value) for key, value in source.items())
    assert any("running_var" in key for key in source)


def test_fine_tuning_moves_the_backbone_and_prediction_asks_for_no_source(
    digits: str, tmp_path: Path
) -> None:
    name = save_model(tmp_path / "model")
    changes = {"model__freeze": False, "data__weak": "crop", "model__feature_dim": 10}
    run = train(
        "supervised-digits", digits, tmp_path / "runs", "run", model__backbone=name, **changes
    )
    source = load_file(tmp_path / "model" / "model.safetensors")
    state = load_file(run.path / "model.safetensors")
    key = "encoder.layer.0.mlp.fc1.weight"
    assert not torch.equal(state[f"backbone.encoder.model.{key}"], source[key])
    shutil.rmtree(tmp_path / "model")
    images, truth = test_images(digits)
    right = float((run.predict(images).argmax(1) == truth).float().mean())
    assert right == pytest.approx(run.metrics["test/accuracy"], abs=0.003)
    assert not (run.path / "backbone.safetensors").exists()


@pytest.mark.parametrize(
    ("config", "changes", "sentence"),
    [
        ("supervised-digits", {"data__weak": "crop"}, "set data.weak and data.strong to one of"),
        (
            "supervised-digits",
            {"model__freeze": False, "model__cache_features": True},
            "needs model.freeze = true",
        ),
        ("linear-probe-digits", {"model__feature_dim": 10}, "set model.feature_dim = 24"),
        ("linear-probe-digits", {"model__freeze": False}, "set model.freeze = true"),
        ("knn-digits", {"train__warmup_steps": 5}, "trains nothing; set it to 0"),
    ],
)
def test_what_cannot_be_cached_or_probed_is_refused(
    config: str, changes: dict[str, Any], sentence: str, digits: str, tmp_path: Path
) -> None:
    name = save_model(tmp_path / "model")
    with pytest.raises(ValueError, match=sentence):
        train(config, digits, tmp_path / "runs", "run", model__backbone=name, **changes)
    assert not (tmp_path / "runs").exists()


@pytest.mark.ray
def test_two_workers_do_what_one_process_does(digits: str, tmp_path: Path, ray_local: str) -> None:
    config = "linear-probe-digits"
    name = save_model(tmp_path / "model")
    alone = train(config, digits, tmp_path / "alone", "run", model__backbone=name)
    many = {"train__engine": "deepspeed", "train__num_workers": 2, "model__backbone": name}
    both = train(config, digits, tmp_path / "both", "run", **many)
    assert losses(both) == pytest.approx(losses(alone), rel=1e-4)
    assert both.metrics == pytest.approx(alone.metrics, abs=0.01)
    states = [load_file(run.path / "model.safetensors") for run in (alone, both)]
    assert states[0].keys() == states[1].keys()
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, rtol=1e-3, atol=1e-4)
