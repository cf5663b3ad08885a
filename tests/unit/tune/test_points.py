"""Points and results: means, the best, the table, and the way to disk and back."""

from __future__ import annotations

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from labelmesh.tune.points import Point, State, SweepResult


def point(k: object, *scores: float, state: State = "finished", error: str | None = None) -> Point:
    return Point({"graph.k": k}, scores, 1.5, state, error, rounds=3)


def result(*points: Point, mode: str = "max") -> SweepResult:
    assert mode in {"max", "min"}
    return SweepResult("s", "val/accuracy", mode, ("graph.k",), points)  # type: ignore[arg-type]


def test_mean_and_sd_of_the_seeds() -> None:
    assert point(1, 0.5, 0.75).mean == 0.625
    assert point(1, 0.5, 0.75).sd == pytest.approx(math.sqrt(0.03125))
    assert math.isnan(point(1, 0.5).sd)
    assert math.isnan(point(1).mean)


def test_the_best_is_a_finished_point_and_of_equals_the_first() -> None:
    stopped, failed = point(1, 0.99, state="stopped"), point(2, state="failed", error="broke")
    a, b, c = point(3, 0.5, 0.7), point(4, 0.6, 0.6), point(5, 0.1)
    assert result(stopped, failed, c, a, b).best is a
    assert result(stopped, failed, b, a, c, mode="min").best is c


def test_without_a_finished_point_none_is_best() -> None:
    with pytest.raises(ValueError, match=r"no point of the sweep .s. was finished.*: broke"):
        result(point(1, state="failed", error="broke")).best  # noqa: B018


def test_the_table_has_a_row_per_point() -> None:
    table = result(point(3, 0.5, 0.7), point(4, state="failed", error="broke")).table()
    assert table.to_pylist()[1] == {
        "point": 1,
        "graph.k": 4,
        "mean": None,
        "sd": None,
        "num": 0,
        "state": "failed",
        "seconds": 1.5,
        "rounds": 3,
        "error": "broke",
    }
    assert table["mean"].to_pylist()[0] == pytest.approx(0.6)


def test_values_of_different_kinds_become_text() -> None:
    assert result(point(0.5, 1.0), point("auto", 1.0)).table()["graph.k"].to_pylist() == [
        "0.5",
        "auto",
    ]
    assert result(point(1, 1.0), point(0.5, 1.0)).table()["graph.k"].to_pylist() == [1.0, 0.5]


def test_a_result_comes_back_from_disk_as_it_was(tmp_path: Path) -> None:
    one = result(point(3, 0.5, 1 / 3), point("auto", state="failed", error="broke"))
    one.save(str(tmp_path / "s"))
    assert SweepResult.load(str(tmp_path / "s")) == one
    assert pq.read_table(tmp_path / "s" / "table.parquet").equals(one.table())
    with pytest.raises(ValueError, match="holds no finished sweep"):
        SweepResult.load(str(tmp_path))
