"""The command line: what is printed where, exit codes, and that help is quick."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import labelmesh
import numpy as np
import pyarrow.parquet as pq
import pytest
from labelmesh.cluster import api, cli
from labelmesh.trainers.config import shipped_configs
from labelmesh.trainers.outcome import RunFailed


def call(*arguments: str) -> int:
    """Exit code of a command."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


@pytest.fixture
def features(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    truth = np.repeat([0, 1], 40)
    x = rng.normal(size=(80, 3)) + 12.0 * truth[:, None]
    np.savez(tmp_path / "x.npz", features=x, labels=np.where(np.arange(80) % 20 == 0, truth, -1))
    return tmp_path / "x.npz"


class FakeCluster:
    """Stands for a cluster: remembers what it was asked and reports one step."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: dict[str, Any] = {}

    def __enter__(self) -> FakeCluster:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.asked["closed"] = True

    def train(self, config: str, **options: Any) -> SimpleNamespace:
        on_event = options.pop("on_event")
        self.asked |= {"config": config, **options}
        if self.error is not None:
            raise self.error
        on_event({"kind": "round", "round": 0, "epoch": 0, "coverage": 0.5})
        return SimpleNamespace(metrics={"test/accuracy": 0.9}, uri="runs/first")


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    monkeypatch.setattr(api, "connect", lambda: fake)
    return fake


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from labelmesh.cluster.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'ray', 'numpy', 'pyarrow', 'fsspec'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"


def test_train_help_lists_the_shipped_configurations(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "--help") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in shipped_configs())


def test_names_listed_in_help_are_those_that_train_takes() -> None:
    assert list(cli.shipped_configurations()) == list(shipped_configs())


def test_module_and_command_are_the_same() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "labelmesh", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == labelmesh.__version__


def test_train_hands_over_what_was_asked(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--set", "graph.k=9", "--set", "data.uri=s3://x", "--name", "first", "--resume"]
    assert call("train", "dag-digits", *options, "--json") == 0
    assert cluster.asked == {
        "config": "dag-digits",
        "set": {"graph.k": 9, "data.uri": "s3://x"},
        "name": "first",
        "resume": True,
        "out": None,
        "closed": True,
    }
    out, err = capsys.readouterr()
    assert json.loads(out) == {"run": "runs/first", "metrics": {"test/accuracy": 0.9}}
    assert err.strip() == "round 0  coverage 50.0 %"


def test_train_prints_the_metrics(cluster: FakeCluster, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("train", "dag-digits") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [["dag-digits"], ["test/accuracy", "0.9"], ["run", "runs/first"]]


def test_a_wrong_key_is_refused_before_a_cluster_is_asked_for(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("train", "dag-digits", "--set", "graph.kk=3") == 2
    out, err = capsys.readouterr()
    assert (out, cluster.asked) == ("", {})
    assert err == "error: dag-digits: unknown key 'graph.kk'; did you mean 'graph.k'?\n"


def test_a_run_that_breaks_gives_code_1(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.error = RunFailed("loss is nan at step 7")
    assert call("train", "dag-digits") == 1
    assert capsys.readouterr().err.splitlines()[-1] == "the run failed: loss is nan at step 7"


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("train",),
        ("train", "dag-digits", "--nonsense"),
        ("label", "x.npz"),
        ("label", "x.npz", "--out", "y.parquet", "--k", "many"),
    ],
)
def test_wrong_usage_gives_code_2(
    arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(*arguments) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err
    assert "Usage: labelmesh" in err


def test_label_writes_every_row(
    features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "labels.parquet"
    assert call("label", str(features), "--out", str(out), "--k", "6", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["rows"], result["given"], result["coverage"]) == (80, 4, 1.0)
    assert pq.read_table(out)["label"].to_pylist() == [0] * 40 + [1] * 40


def test_label_takes_labels_from_a_second_file(features: Path, tmp_path: Path) -> None:
    labels = np.full(80, -1)
    labels[[3, 50]] = [7, 8]
    np.save(tmp_path / "y.npy", labels)
    out = tmp_path / "out.parquet"
    arguments = [str(features), "--labels", str(tmp_path / "y.npy"), "--out", str(out)]
    assert call("label", *arguments, "--k", "6", "--method", "laplace") == 0
    assert pq.read_table(out)["label"].to_pylist() == [7] * 40 + [8] * 40


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (["--k", "80"], "k"),
        (["--k", "0"], "k"),
        (["--method", "voting"], "method = 'voting': known are poisson"),
        (["--metric", "hamming"], "metric = 'hamming': known are euclidean, cosine"),
        (["--labels", "missing.npy"], "missing.npy: no such file"),
    ],
)
def test_label_refuses_in_one_sentence(
    features: Path,
    tmp_path: Path,
    change: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "labels.parquet"
    assert call("label", str(features), "--out", str(out), *change) == 2
    err = capsys.readouterr().err
    assert sentence in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert not out.exists()


def test_label_needs_features_and_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    np.save(tmp_path / "y.npy", np.zeros(4, np.int64))
    for name, sentence in (("x.npy", "no labels in it"), ("y.npy", "no features in it")):
        assert call("label", str(tmp_path / name), "--out", str(tmp_path / "o.parquet")) == 2
        assert sentence in capsys.readouterr().err


def test_data_import_split_and_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dest = str(tmp_path / "digits")
    assert call("data", "import", "digits", dest, "--json") == 0
    imported = json.loads(capsys.readouterr().out)
    assert len(imported["classes"]) == 10
    assert call("data", "split", dest, "--labels-per-class", "4", "--seed", "1", "--json") == 0
    counts = json.loads(capsys.readouterr().out)
    assert counts["labeled"] == 40
    assert call("data", "info", dest) == 0
    assert "digits" in capsys.readouterr().out
    assert call("data", "import", "digits", dest) == 2
    assert "is not empty" in capsys.readouterr().err
    assert call("data", "split", dest, "--labels-per-class", "5000") == 2
    assert call("data", "import", "sonnets", str(tmp_path / "new")) == 2
    assert call("data", "info", str(tmp_path / "new")) == 2


def test_report_of_a_folder_without_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("report", str(tmp_path)) == 2
    assert "holds no run" in capsys.readouterr().err


def test_report_prints_where_it_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.toml").write_text('name = "young"\n')
    assert call("report", str(tmp_path)) == 0
    assert Path(capsys.readouterr().out.strip()).read_text().startswith("<!doctype html>")


def test_predict_of_a_folder_without_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8), np.uint8))
    out = str(tmp_path / "out.parquet")
    assert call("predict", str(tmp_path), str(tmp_path / "x.npy"), "--out", out) == 2
    assert "holds no finished run" in capsys.readouterr().err


def test_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("runs", str(tmp_path)) == 0
    assert capsys.readouterr().out.startswith("no runs in ")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.toml").write_text('[method]\nname = "dag"\n')
    (tmp_path / "one" / "result.json").write_text('{"test/accuracy": 0.91234}')
    assert call("runs", str(tmp_path)) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1] == ["one", "dag", "finished", "0", "0.9123", "-"]
    assert call("runs", str(tmp_path), "--json") == 0
    assert json.loads(capsys.readouterr().out)["runs"][0]["name"] == "one"


def test_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("doctor", "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] is True
    assert {check["name"] for check in result["checks"]} >= {"Python", "torch", "Ray"}
    assert call("doctor") == 0
    assert "what to do" in capsys.readouterr().out
