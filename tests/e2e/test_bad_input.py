"""Bad input on the command line: exit code 2, one sentence, nothing written, nothing lost."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from labelmesh.cluster.cli import main

FAST = [
    "train.engine=local",
    "train.threads_per_worker=1",
    "train.num_workers=1",
    "train.epochs=1",
    "train.warmup_steps=2",
    "train.steps_per_epoch=2",
    "train.baseline_steps=0",
    "train.batch_size=32",
    "train.labeled_per_batch=8",
    "data.num_nodes=100",
    "graph.k=5",
    "model.feature_dim=8",
]


@pytest.fixture
def copy(digits: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(digits, tmp_path / "digits"))


def rewrite(manifest: Path, **columns: Any) -> None:
    table = pq.read_table(manifest)
    for name, values in columns.items():
        at = table.column_names.index(name)
        table = table.set_column(at, name, values(table[name]))
    pq.write_table(table, manifest)


def refused(capsys: pytest.CaptureFixture[str], out: Path, *extra: str, data: Path | str) -> str:
    """The sentence with which `labelmesh train` refuses; checks code, length and traces."""
    overrides = [f"data.uri={data}", *FAST, *extra]
    flags = [part for item in overrides for part in ("--set", item)]
    with pytest.raises(SystemExit) as stop:
        main(["train", "dag-digits", "--name", "run", "--out", str(out), *flags])
    said = capsys.readouterr().err
    assert stop.value.code == 2, said
    assert "Traceback" not in said
    assert not (out / "run").exists()
    return " ".join(said.split())


def test_misspelt_key(digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, tmp_path, "graph.kk=3", data=digits)
    assert "unknown key 'graph.kk'; did you mean 'graph.k'?" in said


def test_k_not_below_n(digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, tmp_path, "graph.k=100", data=digits)
    assert "graph.k = 100 is not below the number of nodes, 100" in said


def test_missing_uri(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # The shipped configuration would import the digits to a place where nothing is.
    config = tmp_path / "c.toml"
    config.write_text(
        f'name="c"\n[data]\nuri="{tmp_path}/nothing"\n[method]\nname="dag"\n[train]\nepochs=1\n'
    )
    with pytest.raises(SystemExit) as stop:
        main(["train", str(config), "--set", "train.engine=local", "--out", str(tmp_path / "o")])
    assert stop.value.code == 2
    assert "there is no data set" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "o").exists()


def test_labels_outside_the_classes(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(
        copy / "manifest.parquet",
        label=lambda c: pc.if_else(pc.equal(c, 9), pa.scalar(10), c),
    )
    assert "10" in refused(capsys, tmp_path, data=copy)


def test_class_without_a_label(
    copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rewrite(
        copy / "manifest.parquet",
        label=lambda c: pc.if_else(pc.equal(c, 3), pa.scalar(-1), c),
    )
    assert "class" in refused(capsys, tmp_path, data=copy)


def test_duplicate_keys(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def doubled(column: pa.ChunkedArray) -> pa.Array:
        keys = column.to_pylist()
        keys[1] = keys[0]
        return pa.array(keys)

    first = pq.read_table(copy / "manifest.parquet")["key"][0].as_py()
    rewrite(copy / "manifest.parquet", key=doubled)
    assert first in refused(capsys, tmp_path, data=copy)


def test_missing_shard(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = sorted((copy / "shards").glob("*.tar"))[0]
    shard.unlink()
    assert shard.name in refused(capsys, tmp_path, data=copy)


def test_features_that_are_not_finite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(120, 8)).astype(np.float32)
    features[7, 3] = np.nan
    source = tmp_path / "x.npz"
    np.savez(source, features=features, labels=np.arange(120) % 10)
    with pytest.raises(SystemExit) as stop:
        main(["label", str(source), "--out", str(tmp_path / "labels.parquet"), "--k", "5"])
    said = capsys.readouterr().err
    assert stop.value.code == 2
    assert "7" in said
    assert not (tmp_path / "labels.parquet").exists()


def test_existing_output(digits: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [part for item in [f"data.uri={digits}", *FAST] for part in ("--set", item)]
    command = ["train", "dag-digits", "--name", "run", "--out", str(tmp_path), *flags]
    with pytest.raises(SystemExit) as stop:
        main([*command, "--json"])
    assert stop.value.code in (0, None)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    capsys.readouterr()
    for extra, sentence in (
        ([], "add --resume"),
        (["--resume", "--set", "graph.k=6"], "another configuration (different: graph.k)"),
    ):
        with pytest.raises(SystemExit) as stop:
            main([*command, *extra])
        assert stop.value.code == 2
        assert sentence in " ".join(capsys.readouterr().err.split())
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
