"""`labelmesh tune`: what is handed over, what is printed where, and what is refused early."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from labelmesh.cluster import api, cli
from labelmesh.trainers.outcome import RunFailed
from labelmesh.tune.points import Point, SweepResult
from labelmesh.tune.sweep import Sweep
from labelmesh.tune.sweep_spec import shipped_sweeps

POINTS = tuple(Point({"graph.k": k}, (k / 10, k / 10), 1.0, "finished", None, 2) for k in (5, 9, 7))
FOUND = Sweep("runs/s", SweepResult("s", "val/accuracy", "max", ("graph.k",), POINTS))


class FakeCluster(api.Cluster):
    """Remembers what it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error
        self.asked: dict[str, Any] = {}

    def tune(self, sweep: Any, **options: Any) -> Any:
        options.pop("on_event")({"kind": "sweep", "points": 3, "done": 0, "at_once": 2})
        self.asked = {"sweep": sweep, **options}
        if self.error is not None:
            raise self.error
        return FOUND


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    fake = FakeCluster()
    monkeypatch.setattr(api, "connect", lambda: fake)
    return fake


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_tune_hands_over_what_was_asked(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--set", "graph.num_shards=2", "--set", "search.num_seeds=3", "--num-samples", "9"]
    assert call("tune", "sweep-fixmatch-digits", *options, "--out", "x", "--resume", "--json") == 0
    assert cluster.asked == {
        "sweep": "sweep-fixmatch-digits",
        "set": {"graph.num_shards": 2, "search.num_seeds": 3, "search.num_samples": 9},
        "name": None,
        "out": "x",
        "resume": True,
    }
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert (result["best"], result["mean"], result["points"]) == ({"graph.k": 9}, 0.9, 3)
    assert [row["graph.k"] for row in result["table"]] == [5, 9, 7]
    assert err.strip() == "sweep-fixmatch-digits: 3 points, 2 at a time"


def test_tune_prints_the_best_points_first(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("tune", "sweep-dag-digits", "--name", "s") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[:2] for line in lines[2:5]] == [["1", "9"], ["2", "7"], ["0", "5"]]
    assert ["best_config", "runs/s/best.toml"] in lines


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nope"], "no sweep 'nope'"),
        (["sweep-dag-digits", "--set", "graph.kk=1"], "unknown key 'graph.kk'; did you mean"),
        (["sweep-dag-digits", "--set", "metric=test/accuracy"], "nothing to test with"),
        (["sweep-dag-digits", "--set", "graph.k=3"], "both set and searched"),
    ],
)
def test_bad_input_is_said_before_a_cluster_is_asked_for(
    arguments: list[str],
    sentence: str,
    cluster: FakeCluster,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("tune", *arguments) == 2
    assert cluster.asked == {}
    err = capsys.readouterr().err
    assert sentence in err
    assert len(err.splitlines()) == 1


def test_a_sweep_without_a_finished_point_is_a_failed_run(
    cluster: FakeCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster.error = RunFailed("no point of the sweep 's' was finished: disk is full")
    assert call("tune", "sweep-dag-digits") == 1
    assert capsys.readouterr().err.splitlines()[-1].endswith("was finished: disk is full")


def test_help_lists_the_shipped_sweeps_and_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from labelmesh.cluster.cli import main\n"
        "try: main(['tune', '--help'])\n"
        "except SystemExit: pass\n"
        "print({'torch', 'ray', 'numpy', 'optuna'} & set(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "set()"
    assert all(name in done.stdout for name in shipped_sweeps())
    assert "graph-" not in done.stdout
