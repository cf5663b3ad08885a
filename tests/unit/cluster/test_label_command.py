"""`labelmesh label` as a user calls it: files in, a file and a report out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelmesh.cluster import cli, label_command
from labelmesh.cluster.label import label_features


def call(*arguments: str) -> int:
    """Exit code of `labelmesh label`."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["label", *arguments])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture
def data(tmp_path: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """`x.npy` with 90 rows in three clusters; the rows and four labels of each."""
    rng = np.random.default_rng(0)
    truth = np.arange(90) % 3
    x = (rng.normal(size=(90, 4)) + 5 * np.eye(3, 4)[truth]).astype(np.float32)
    labels = np.where(np.arange(90) < 12, truth, -1)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", labels)
    return tmp_path, x, labels


def run(folder: Path, *arguments: str, features: str = "x.npy") -> pa.Table:
    out = folder / "out" / "labels.parquet"
    assert call(str(folder / features), "--out", str(out), "--k", "8", *arguments) == 0
    return pq.read_table(out)


def test_it_says_what_label_features_says(
    data: tuple[Path, Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, x, labels = data
    table = run(folder, "--labels", str(folder / "y.npy"), "--method", "laplace", "--json")
    expected = label_features(x, labels, method="laplace", k=8)
    assert table["label"].to_pylist() == expected.labels.tolist()
    assert table["confidence"].to_pylist() == expected.confidence.tolist()
    assert table["row"].to_pylist() == list(range(90))
    result = json.loads(capsys.readouterr().out)
    assert (result["rows"], result["given"], result["classes"]) == (90, 12, 3)
    assert result["where"].startswith("one process")
    assert result["search"] == "exact (90 rows of width 4 are few enough)"
    assert result["no_comparison"] is None
    scores = result["comparison"]
    assert (scores["method"], scores["num_folds"], scores["num_held_out"]) == ("laplace", 4, 12)
    assert scores["graph"] == scores["linear_probe"] == scores["knn"] == 1.0


def test_people_get_tables(data: tuple[Path, Any, Any], capsys: pytest.CaptureFixture[str]) -> None:
    folder, _, _ = data
    run(folder, "--labels", str(folder / "y.npy"))
    out, err = capsys.readouterr()
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert "right on 12 held-out labels (4 folds)" in lines
    assert "this graph, poisson 100.0%" in lines
    assert "linear probe 100.0%" in lines
    assert "kNN (3 nearest labeled rows) 100.0%" in lines
    assert err == ""


def test_long_jobs_tell_their_stages(
    data: tuple[Path, Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(label_command, "_MANY_ROWS", 10)
    folder, _, _ = data
    run(folder, "--labels", str(folder / "y.npy"))
    stages = [line.split(" s  ")[1] for line in capsys.readouterr().err.splitlines()]
    assert stages[0].startswith("90 rows on one process")
    assert stages[1:4] == [
        "finding 8 neighbours of 90 rows (exact)",
        "solving poisson",
        "holding out fold 1 of 4",
    ]
    assert stages[-1].startswith("writing ")


def test_without_a_comparison_nothing_is_held_out(
    data: tuple[Path, Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, _ = data
    run(folder, "--labels", str(folder / "y.npy"), "--no-compare")
    assert "linear probe" not in capsys.readouterr().out
    run(folder, "--labels", str(folder / "y.npy"), "--no-compare", "--json")
    result = json.loads(capsys.readouterr().out)
    assert (result["comparison"], result["no_comparison"]) == (None, "not asked for")


def test_one_label_of_each_class_is_said_instead_of_a_number(
    data: tuple[Path, Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, _, _ = data
    (folder / "few.csv").write_text("row,label\n0,0\n1,1\n2,2\n")
    table = run(folder, "--labels", str(folder / "few.csv"))
    assert table["label"].to_pylist() == [row % 3 for row in range(90)]
    out = capsys.readouterr().out
    assert "no comparison: every class has one label, and none can be held out" in out


def test_names_go_in_and_come_back(data: tuple[Path, Any, Any]) -> None:
    folder, x, labels = data
    names = np.array(["ant", "bee", "cat", ""])[labels]
    keys = np.array([f"s{row}" for row in range(90)])
    lists = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 4)
    (folder / "parts").mkdir()
    for number, rows in enumerate((slice(0, 50), slice(50, 90))):
        part = pa.table({"key": keys[rows], "features": lists[rows], "label": names[rows]})
        pq.write_table(part, folder / "parts" / f"{number}.parquet")
    table = run(folder, features="parts")
    assert table.column_names == ["key", "label", "confidence", "source"]
    assert table["key"].to_pylist() == keys.tolist()
    assert table["label"].to_pylist() == [("ant", "bee", "cat")[row % 3] for row in range(90)]
    assert table["source"].to_pylist() == ["given"] * 12 + ["graph"] * 78


def test_keys_that_come_twice_are_told(
    data: tuple[Path, Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, x, labels = data
    np.savez(folder / "x.npz", features=x, labels=labels, keys=np.arange(90) % 88)
    table = run(folder, "--json", "--no-compare", features="x.npz")
    assert json.loads(capsys.readouterr().out)["keys that come more than once"] == 2
    assert table["key"].to_pylist() == [row % 88 for row in range(90)]


def test_what_is_not_reached_has_no_name(data: tuple[Path, Any, Any]) -> None:
    folder, x, labels = data
    x[labels.size // 2 :] += 1000
    np.savez(folder / "x.npz", features=x, labels=np.array(["a", "b", "c", "-1"])[labels])
    table = run(folder, features="x.npz")
    assert table["label"].to_pylist()[45:] == [None] * 45
    assert table["source"].to_pylist()[45:] == ["none"] * 45
    assert table["confidence"].to_pylist()[45:] == [0.0] * 45


def test_the_seed_decides_about_folds_alone(
    data: tuple[Path, Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, x, labels = data
    x += np.random.default_rng(1).normal(size=x.shape).astype(np.float32) * 4
    np.savez(folder / "x.npz", features=x, labels=labels)
    found = []
    for seed in ("1", "1", "2"):
        table = run(folder, "--seed", seed, "--json", features="x.npz")
        found.append((table, json.loads(capsys.readouterr().out)["comparison"]))
    assert found[0][0].equals(found[1][0])
    assert found[0][0].equals(found[2][0])
    assert found[0][1] == found[1][1]


def test_approximate_search_tells_its_recall(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    truth = np.arange(1500) % 3
    x = (rng.normal(size=(1500, 4)) + 5 * np.eye(3, 4)[truth]).astype(np.float16)
    np.savez(tmp_path / "x.npz", features=x, labels=np.where(np.arange(1500) < 12, truth, -1))
    tables, results = [], []
    # With 8 neighbours refinement does not find enough of them.
    for search, k in (("exact", "20"), ("approximate", "20"), ("approximate", "8")):
        tables.append(run(tmp_path, "--search", search, "--k", k, "--json", features="x.npz"))
        results.append(json.loads(capsys.readouterr().out))
    exact, approximate, in_vain = results
    assert "recall" not in exact
    assert exact["precision"] == "float16 rows, computed in float32"
    assert approximate["search"] == "approximate (as asked)"
    assert 0.98 < approximate["recall_low"] <= approximate["recall"] <= 1.0
    assert "recall" not in in_vain
    assert in_vain["search"] == "exact, as approximate search found too little"
    assert (tables[0]["label"].to_numpy() == tables[1]["label"].to_numpy()).mean() > 0.999


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--search", "fast"], "search = 'fast': known are auto, exact, approximate"),
        (["--shards", "0"], "shards = 0 must be at least 1"),
        (["--k", "90"], "k = 90 must be less than num_nodes = 90"),
        (["--method", "voting"], "method = 'voting': known are poisson"),
        (["--sigma", "-1", "--method", "density_paths"], "sigma must be >= 0, got -1"),
    ],
)
def test_wrong_options_are_one_sentence(
    data: tuple[Path, Any, Any],
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder, _, _ = data
    out = folder / "o.parquet"
    files = [str(folder / "x.npy"), "--labels", str(folder / "y.npy"), "--out", str(out)]
    assert call(*files, *arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert sentence in err
    assert err.count("\n") == 1
    assert not out.exists()


def test_wrong_data_are_one_sentence(
    data: tuple[Path, Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, x, labels = data
    with_nan = x.copy()
    with_nan[[7, 30]] = np.nan
    keys = np.array([f"s{row}" for row in range(90)])
    np.savez(folder / "nan.npz", features=with_nan, labels=labels)
    np.savez(folder / "none.npz", features=x, labels=np.full(90, -1))
    np.savez(folder / "low.npz", features=x, labels=labels - 1)
    np.savez(folder / "keys.npz", features=x, keys=keys)
    (folder / "stranger.csv").write_text("key,label\ns1,0\nt1,1\n")
    (folder / "twice.csv").write_text("key,label\ns1,0\ns1,1\n")
    for features, given, sentence in (
        ("nan.npz", None, "nan.npz: rows 7, 30 contain NaN"),
        ("none.npz", None, "none of the 90 rows has a label (all are -1); label a few"),
        ("low.npz", None, "label -2 is neither a class from 0 nor -1 = unlabeled"),
        ("keys.npz", "stranger.csv", "1 keys have no features, the first is 't1'"),
        ("keys.npz", "twice.csv", "twice.csv: 1 keys come more than once ('s1')"),
        ("x.npy", None, "no labels in it; give them with --labels FILE"),
        ("y.npy", None, "no features in it; name the array or column 'features'"),
    ):
        options = [] if given is None else ["--labels", str(folder / given)]
        out = folder / "o.parquet"
        assert call(str(folder / features), "--out", str(out), *options) == 2
        err = capsys.readouterr().err
        assert sentence in err
        assert err.count("\n") == 1
        assert not out.exists()
