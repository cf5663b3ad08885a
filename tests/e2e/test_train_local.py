"""A whole run in one process: every file, resuming, and bad input before anything is written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import labelmesh as lm
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from labelmesh.cluster import driver
from labelmesh.cluster.api import Run
from labelmesh.cluster.status import examine
from labelmesh.trainers.config import ConfigError
from labelmesh.trainers.run_dir import RunDir
from labelmesh.trainers.tensorboard_sink import read_points
from safetensors.torch import load_file

FAST = {
    "train.engine": "local",
    "train.threads_per_worker": 1,
    "train.num_workers": 1,
    "train.epochs": 3,
    "train.warmup_steps": 6,
    "train.steps_per_epoch": 4,
    "train.baseline_steps": 4,
    "train.batch_size": 32,
    "train.labeled_per_batch": 8,
    "data.num_nodes": 200,
    "data.val_share": 0.1,
    "graph.k": 6,
    "model.feature_dim": 16,
}


def train(digits: str, out: Path, config: str = "dag-digits", **changes: Any) -> Run:
    overrides = {
        **FAST,
        "data.uri": digits,
        **{k.replace("__", "."): v for k, v in changes.items()},
    }
    name, resume = overrides.pop("name", "run"), overrides.pop("resume", False)
    report = overrides.pop("report", False)
    return lm.connect().train(
        config, set=overrides, name=name, out=str(out), resume=resume, report=report
    )


@pytest.fixture(scope="module")
def finished(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    out = tmp_path_factory.mktemp("runs")
    return train(digits, out, report=True, tracking__tensorboard=True)


def test_run_leaves_every_promised_file(finished: Run) -> None:
    promised = {
        "config.toml",
        "environment.json",
        "metrics.jsonl",
        "rounds.jsonl",
        "checkpoints",
        "store",
        "labels.parquet",
        "model.safetensors",
        "report.html",
        "result.json",
        "status.json",
        "tensorboard",
    }
    assert promised <= {p.name for p in finished.path.iterdir()}


def test_every_node_gets_a_label_and_given_ones_are_kept(finished: Run, digits: str) -> None:
    table = finished.labels()
    assert table.column_names == ["key", "label", "confidence", "source", "round"]
    assert table.num_rows == 200
    source = np.array(table["source"].to_pylist())
    assert (source == "given").sum() == 40
    manifest = pq.read_table(Path(digits, "manifest.parquet"), columns=["key", "truth"])
    truth = dict(zip(manifest["key"].to_pylist(), manifest["truth"].to_pylist()))
    keys, labels = table["key"].to_pylist(), table["label"].to_pylist()
    assert all(truth[k] == v for k, v, s in zip(keys, labels, source) if s == "given")
    confidence = table["confidence"].to_numpy()
    assert ((confidence > 0) & (confidence <= 1)).all()


def test_rounds_are_recorded_with_their_numbers(finished: Run) -> None:
    rounds = finished.dir.read_lines("rounds.jsonl")
    assert [r["round"] for r in rounds] == [0, 1, 2, 3]
    assert all(r["exact"] and r["recall"] == 1.0 for r in rounds)
    assert all(0 <= r["pseudo_accuracy"] <= 1 for r in rounds)


def test_test_split_is_read_once_per_network_at_the_end(finished: Run) -> None:
    def reads(file: str) -> list[dict[str, Any]]:
        lines = finished.dir.read_lines(file)
        return [r for r in lines if r["kind"] == "eval" and r["split"] == "test"]

    assert len(reads("metrics.jsonl")) == 1
    assert len(reads("baseline_metrics.jsonl")) == 1
    assert finished.metrics["test/accuracy"] == reads("metrics.jsonl")[0]["accuracy"]
    last = finished.dir.read_lines("metrics.jsonl")[-1]
    assert last["split"] == "test"


def test_prediction_repeats_the_test_accuracy(finished: Run, digits: str) -> None:
    from labelmesh.datasets.manifest import splits_of
    from labelmesh.datasets.reader import Reader
    from labelmesh.datasets.truth import load_truth

    rows = splits_of(digits)["test"]
    images = Reader(digits, rows, torch.full((len(rows),), -1)).read(torch.arange(len(rows))).inputs
    probs = finished.predict(images.numpy())
    np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-5)
    right = float((probs.argmax(1) == load_truth(digits, rows).numpy()).mean())
    assert right == pytest.approx(finished.metrics["test/accuracy"], abs=1e-9)


@pytest.mark.parametrize("config", ["supervised-digits", "fixmatch-digits", "lpdssl-digits"])
def test_every_method_runs_to_the_end(config: str, digits: str, tmp_path: Path) -> None:
    run = train(digits, tmp_path, config, train__epochs=2)
    assert 0 < run.metrics["test/accuracy"] <= 1
    assert run.labels().num_rows == 200
    assert not run.dir.exists("report.html")


def test_hidden_labels_reach_no_training_code(finished: Run, digits: str, tmp_path: Path) -> None:
    import shutil

    import pyarrow as pa

    copy = tmp_path / "digits"
    shutil.copytree(digits, copy)
    table = pq.read_table(copy / "manifest.parquet")
    is_train = np.array(table["split"].to_pylist()) == "train"
    # Nonsense where only evaluation may look.
    truth = np.where(is_train, 0, table["truth"].to_numpy())
    at = table.column_names.index("truth")
    pq.write_table(table.set_column(at, "truth", pa.array(truth)), copy / "manifest.parquet")
    run = train(str(copy), tmp_path)
    a, b = (load_file(r.path / "model.safetensors") for r in (finished, run))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert run.labels().equals(finished.labels())
    assert run.metrics["nodes/accuracy"] != finished.metrics["nodes/accuracy"]


def test_labels_hidden_by_a_split_reach_no_training_code(digits: str, tmp_path: Path) -> None:
    import shutil

    import pyarrow as pa
    from labelmesh.datasets.splits import write_split

    runs = []
    for scrambled in (False, True):
        copy = tmp_path / f"digits-{scrambled}"
        shutil.copytree(digits, copy)
        write_split(str(copy), labels_per_class=4, seed=0)
        if scrambled:
            table = pq.read_table(copy / "manifest.parquet")
            hidden = table["label"].to_numpy() < 0
            for name in ("truth", "imported_label"):
                values = np.where(hidden, 0, table[name].fill_null(-1).to_numpy())
                at = table.column_names.index(name)
                table = table.set_column(at, name, pa.array(values))
            pq.write_table(table, copy / "manifest.parquet")
        config = tmp_path / f"{scrambled}.toml"
        config.write_text(
            f'name="c"\n[data]\nuri="{copy}"\n[method]\nname="dag"\n[train]\nepochs=1\n'
        )
        skipped = {"data.uri", "data.num_nodes", "data.val_share", "train.epochs"}
        overrides = {k: v for k, v in FAST.items() if k not in skipped}
        runs.append(
            lm.connect().train(
                config, set=overrides, name=f"{scrambled}", out=str(tmp_path), report=False
            )
        )
    a, b = (load_file(r.path / "model.safetensors") for r in runs)
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_unreadable_sample_gets_no_label(digits: str, tmp_path: Path) -> None:
    import shutil

    from labelmesh.datasets.manifest import load_index

    copy = tmp_path / "digits"
    shutil.copytree(digits, copy)
    index = load_index(str(copy))
    shard = copy / index.shards[int(index.shard_ids[5])]
    content = bytearray(shard.read_bytes())
    start = int(index.offsets[5])
    content[start : start + int(index.sizes[5])] = bytes(int(index.sizes[5]))
    shard.write_bytes(content)
    changes = {"data__num_nodes": 1438, "data__val_share": 0.0, "train__epochs": 1}
    run = train(str(copy), tmp_path, **changes)
    rows = run.labels().to_pylist()
    broken = [r for r in rows if r["key"] == index.keys[5].as_py()]
    assert [(r["label"], r["source"], r["confidence"]) for r in broken] == [(-1, "none", 0.0)]
    assert all(r["label"] >= 0 for r in rows if r not in broken)


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("model__backbone", "nope", "known are"),
        ("data__weak", "nope", "known are"),
        ("graph__device", "gpu", "is no device"),
    ],
)
def test_parts_that_cannot_be_made_are_refused_before_the_start(
    key: str, value: str, sentence: str, digits: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        train(digits, tmp_path, **{key: value})
    assert not (tmp_path / "run").exists()


class Killed(RuntimeError):
    pass


@pytest.mark.parametrize("config", ["dag-digits", "gll-digits"])
def test_interrupted_run_continues_bit_for_bit(
    config: str, digits: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = train(digits, tmp_path, config, name="whole", tracking__tensorboard=True)
    from labelmesh.trainers import loop

    undisturbed = loop.train_epoch

    def dies_in_the_third(training: loop.Training) -> None:
        if training.epoch == 2:
            raise Killed
        undisturbed(training)

    monkeypatch.setattr(loop, "train_epoch", dies_in_the_third)
    with pytest.raises(Killed):
        train(digits, tmp_path, config, name="killed", tracking__tensorboard=True)
    monkeypatch.setattr(loop, "train_epoch", undisturbed)
    assert examine(RunDir(str(tmp_path / "killed")), 0.0)["state"] == "failed"
    resumed = train(
        digits, tmp_path, config, name="killed", resume=True, tracking__tensorboard=True
    )
    a, b = (load_file(r.path / "model.safetensors") for r in (whole, resumed))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert whole.labels().equals(resumed.labels())
    accuracies = [
        [r.get("pseudo_accuracy") for r in run.dir.read_lines("rounds.jsonl")]
        for run in (whole, resumed)
    ]
    assert accuracies[0] == accuracies[1]
    assert curves(whole) == curves(resumed)
    status = examine(resumed.dir, 0.0)
    assert (status["state"], status["restarts"], status["checkpoint"]) == (
        "finished",
        1,
        "epoch-0003",
    )


def curves(run: Run) -> tuple[set[tuple[str, int]], set[tuple[str, int, str]]]:
    """What the run's TensorBoard file says: tags and steps, and the values of what is learned."""
    (path,) = (run.path / "tensorboard").iterdir()
    points = [point for point, _ in read_points(path)]
    steps = [(tag, step) for tag, step, _ in points]
    assert len(set(steps)) == len(steps)
    learned = ("train/", "val/", "test/", "nodes/", "round/coverage")
    return set(steps), {point for point in points if point[0].startswith(learned)}


def test_finished_run_is_not_trained_again(
    finished: Run, digits: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "open_session", None)
    again = train(digits, finished.path.parent, resume=True)
    assert again.metrics == finished.metrics


def test_existing_run_is_refused_without_resume(finished: Run, digits: str) -> None:
    with pytest.raises(ConfigError, match="already holds a run; add --resume"):
        train(digits, finished.path.parent)


def test_folder_with_other_files_is_refused(digits: str, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="exists and is not empty"):
        train(digits, tmp_path)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_resuming_with_another_configuration_names_the_keys(finished: Run, digits: str) -> None:
    with pytest.raises(ConfigError, match=r"another configuration \(different: graph.k\)"):
        train(digits, finished.path.parent, resume=True, graph__k=7)


def test_k_not_below_the_number_of_nodes_is_refused(digits: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"graph\.k = 200 is not below the number of nodes, 200"):
        train(digits, tmp_path, graph__k=200)
    assert not (tmp_path / "run").exists()


def test_missing_data_set_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no data set"):
        train(str(tmp_path / "nothing"), tmp_path, "dag-fashion-mnist")
    assert not (tmp_path / "run").exists()


def test_class_without_label_is_named(digits: str, tmp_path: Path) -> None:
    import shutil

    import pyarrow as pa
    import pyarrow.compute as pc

    copy = tmp_path / "digits"
    shutil.copytree(digits, copy)
    table = pq.read_table(copy / "manifest.parquet")
    label = pc.if_else(pc.equal(table["label"], 3), pa.scalar(-1), table["label"])
    at = table.column_names.index("label")
    pq.write_table(table.set_column(at, "label", label), copy / "manifest.parquet")
    with pytest.raises(ValueError, match="class"):
        train(str(copy), tmp_path)
    assert not (tmp_path / "run").exists()


def test_run_directory_may_be_any_filesystem(digits: str) -> None:
    overrides = {**FAST, "data.uri": digits, "train.epochs": 1}
    run = lm.connect().train("dag-digits", set=overrides, name="m", out="memory://runs")
    assert run.uri == "memory://runs/m"
    assert RunDir(run.uri).exists("model.safetensors")
    assert json.loads(RunDir(run.uri).read_text("result.json")) == run.metrics
    assert run.predict(np.zeros((2, 8, 8), np.uint8)).shape == (2, 10)
