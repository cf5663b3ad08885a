"""`labelmesh suggest` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from labelmesh.cluster import cli
from labelmesh.cluster.suggest import suggest
from labelmesh.cluster.suggest_run import load_run
from PIL import Image


def call(*arguments: str) -> int:
    """Exit code of a command."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture
def features(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    truth = np.repeat(["cat", "dog"], 40)
    x = rng.normal(size=(80, 3)) + 12.0 * (truth == "dog")[:, None]
    labels = np.where(np.arange(80) % 20 == 0, truth, "")
    keys = np.array([f"k{i}" for i in range(80)])
    np.savez(tmp_path / "x.npz", features=x, labels=labels, keys=keys)
    np.savez(tmp_path / "bare.npz", features=x)
    return tmp_path / "x.npz"


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_list_of_features(
    features: Path, tmp_path: Path, ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / f"list.{ending}"
    arguments = ["--count", "7", "--k", "6", "--out", str(out), "--json"]
    assert call("suggest", str(features), *arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["suggested"], result["criterion"]) == (7, "model_change")
    table = pyarrow.csv.read_csv(out) if ending == "csv" else pq.read_table(out)
    assert table.column_names == ["rank", "key", "score", "label", "class", "confidence"]
    assert table["rank"].to_pylist() == list(range(1, 8))
    with np.load(features) as file:
        data = dict(file)
    labels = np.select([data["labels"] == "cat", data["labels"] == "dog"], [0, 1], -1)
    expected = suggest(data["features"], labels, count=7, k=6)
    assert table["key"].to_pylist() == [f"k{i}" for i in expected.node_ids]
    assert set(table["class"].to_pylist()) <= {"cat", "dog"}


def test_people_see_the_first_ones_and_a_map_is_written(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sheet = tmp_path / "list.csv", tmp_path / "pictures" / "map.png"
    bare = str(features.with_name("bare.npz"))
    arguments = ["--count", "12", "--k", "6", "--out", str(out), "--sheet", str(sheet)]
    assert call("suggest", bare, *arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rank", "row", "score", "label", "confidence"]
    assert lines[10].split()[0] == "10"
    assert not lines[11].startswith("  11")
    with Image.open(sheet) as picture:
        assert picture.format == "PNG"


def test_labels_in_a_second_file(features: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"row": [3, 50], "label": [8, 9]}), tmp_path / "y.parquet")
    out = tmp_path / "list.parquet"
    bare = str(features.with_name("bare.npz"))
    options = ["--labels", str(tmp_path / "y.parquet"), "--criterion", "local_max", "--k", "6"]
    assert call("suggest", bare, *options, "--count", "20", "--out", str(out)) == 0
    table = pq.read_table(out)
    assert not {3, 50} & set(table["row"].to_pylist())
    assert set(table["label"].to_pylist()) == {8, 9}


def test_run_with_labels_that_were_given_since(
    run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, sheet = tmp_path / "first.csv", tmp_path / "first.png"
    arguments = ["--count", "5", "--out", str(out)]
    assert call("suggest", run, *arguments, "--sheet", str(sheet)) == 0
    first = pyarrow.csv.read_csv(out)["key"].to_pylist()
    with Image.open(sheet) as picture:
        assert picture.size[0] > 5 * 144
    answers = tmp_path / "answers.csv"
    answers.write_text("key,label\n" + "".join(f"{key},digit 4\n" for key in first))
    assert call("suggest", run, *arguments, "--labels", str(answers)) == 0
    second = pyarrow.csv.read_csv(out)["key"].to_pylist()
    assert not set(first) & set(second)
    nodes = load_run(run)
    labels = np.where(np.isin(nodes.keys, first), 4, -1)
    assert suggest(run, labels, count=5).keys.tolist() == second  # type: ignore[union-attr]
    capsys.readouterr()
    answers.write_text(f"key,label\n{first[0]},elephant\n")
    assert call("suggest", run, *arguments, "--labels", str(answers)) == 2
    assert "the run has no class 'elephant'; its classes are digit 0, digit 1" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--count", "77"], "count = 77, but only 76 nodes are unlabeled"),
        (["--count", "0"], "count must be at least 1"),
        (["--criterion", "luck"], "criterion = 'luck': known are uncertainty, local_max"),
        (["--method", "luck"], "method = 'luck': known are poisson"),
        (["--out", "list.txt"], "list.txt: cannot write this kind of file; use .parquet or .csv"),
        (["--sheet", "map.jpg"], "map.jpg: the sheet is a PNG"),
        (["--labels", "missing.csv"], "missing.csv: no such file"),
        (["--k", "80"], "k"),
    ],
)
def test_refuses_in_one_sentence(
    features: Path,
    tmp_path: Path,
    change: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "list.csv"
    assert call("suggest", str(features), "--out", str(out), "--k", "6", *change) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not out.exists()


def test_features_without_labels_or_without_features(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "list.csv")
    bare = str(features.with_name("bare.npz"))
    assert call("suggest", bare, "--out", out, "--criterion", "uncertainty") == 2
    assert "needs labels to be uncertain about" in capsys.readouterr().err
    np.save(tmp_path / "y.npy", np.zeros(4, np.int64))
    assert call("suggest", str(tmp_path / "y.npy"), "--out", out) == 2
    assert "no features in it" in capsys.readouterr().err
