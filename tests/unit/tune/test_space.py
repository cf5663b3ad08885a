"""Search spaces: what is drawn, in which order, and what is refused with which sentence."""

from __future__ import annotations

import math
from typing import Any

import pytest
from labelmesh.tune.space import (
    Choice,
    Integers,
    Reals,
    check_keys,
    grid_points,
    parse_space,
    random_points,
)

RAW: dict[str, Any] = {
    "graph.k": {"int": [5, 50], "log": True},
    "method.sigma": {"uniform": [0.2, 1.2]},
    "train.lr": {"loguniform": [1e-3, 1e-1]},
    "method.paths": {"choice": ["l", "lu"]},
}


def test_a_table_is_read_kind_by_kind() -> None:
    space = parse_space({**RAW, "a": {"grid": [1, 2]}, "b": {"uniform": [0, 1], "step": 0.25}})
    assert dict(space.dimensions) == {
        "graph.k": Integers(5, 50, log=True),
        "method.sigma": Reals(0.2, 1.2),
        "train.lr": Reals(1e-3, 1e-1, log=True),
        "method.paths": Choice(("l", "lu")),
        "a": Choice((1, 2), every=True),
        "b": Reals(0.0, 1.0, step=0.25),
    }
    assert space.log_keys == ("graph.k", "train.lr")


def test_shares_of_the_draws() -> None:
    assert [Integers(5, 7).at(u) for u in (0.0, 0.34, 0.99)] == [5, 6, 7]
    assert [Integers(5, 25, step=10).at(u) for u in (0.0, 0.5, 0.99)] == [5, 15, 25]
    assert Integers(1, 64, log=True).at(0.0) == 1
    assert Integers(1, 64, log=True).at(0.999999) == 64
    assert Reals(1e-3, 1e-1, log=True).at(0.5) == pytest.approx(1e-2)
    assert Reals(0.0, 1.0).at(0.25) == 0.25
    assert Reals(0.1, 0.5, step=0.1).values == (0.1, 0.2, 0.3, 0.4, 0.5)
    assert Choice(("a", "b")).at(0.5) == "b"


def test_logarithmic_whole_numbers_are_alike_in_every_octave() -> None:
    dimension = Integers(4, 63, log=True)
    drawn = [dimension.at((i + 0.5) / 4000) for i in range(4000)]
    octaves = [math.floor(math.log2(v)) for v in drawn if isinstance(v, int)]
    assert [octaves.count(o) / 4000 for o in (2, 3, 4, 5)] == pytest.approx([0.25] * 4, abs=0.04)


def test_point_i_is_the_same_whatever_the_number_of_samples() -> None:
    space = parse_space(RAW)
    few, many = random_points(space, 3, seed=7), random_points(space, 9, seed=7)
    assert many[:3] == few
    assert random_points(space, 3, seed=8) != few
    assert all(list(point) == list(RAW) for point in many)


def test_a_grid_comes_with_every_draw() -> None:
    space = parse_space({"a": {"grid": [1, 2]}, "b": {"uniform": [0.0, 1.0]}, "c": {"grid": [3]}})
    points = random_points(space, 2, seed=0)
    assert [(p["a"], p["c"]) for p in points] == [(1, 3), (2, 3)] * 2
    assert points[0]["b"] == points[1]["b"] != points[2]["b"]
    assert [list(p) for p in points] == [["a", "b", "c"]] * 4


def test_no_point_is_tried_twice() -> None:
    space = parse_space({"a": {"choice": [1, 2]}, "b": {"int": [1, 3]}})
    points = random_points(space, 50, seed=0)
    assert len({(p["a"], p["b"]) for p in points}) == len(points) == 6
    assert random_points(parse_space({"a": {"grid": [1, 2]}}), 5, seed=0) == ({"a": 1}, {"a": 2})


def test_a_grid_search_goes_through_all_combinations_in_order() -> None:
    space = parse_space({"a": {"int": [1, 2]}, "b": {"choice": ["x", "y"]}})
    assert [tuple(p.values()) for p in grid_points(space)] == [
        (1, "x"),
        (1, "y"),
        (2, "x"),
        (2, "y"),
    ]
    with pytest.raises(ValueError, match=r"'a' is a continuum, which no grid covers"):
        grid_points(parse_space({"a": {"uniform": [0, 1]}}))


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        ({}, r"\[space\] is empty"),
        ({"k": 3}, "expected one of 'choice', 'grid'"),
        ({"k": {"unifrom": [0, 1]}}, "unknown kind 'unifrom'; did you mean 'uniform'"),
        ({"k": {"int": [1, 2], "choice": [1]}}, "exactly one of .* got 'choice', 'int'"),
        ({"k": {"log": True}}, "exactly one of .* got none"),
        ({"k": {"uniform": [0, 1], "log": True}}, "'log' does not go with 'uniform'"),
        ({"k": {"int": [1.5, 2]}}, r"int = \[low, high\] with whole numbers, got \[1.5, 2\]"),
        ({"k": {"int": [True, 2]}}, "with whole numbers"),
        ({"k": {"uniform": [0, math.inf]}}, "with finite numbers"),
        ({"k": {"int": [5]}}, r"got \[5\]"),
        ({"k": {"int": [5, 5]}}, "low must be below high"),
        ({"k": {"loguniform": [0, 1]}}, "begins above 0"),
        ({"k": {"int": [0, 9], "log": True}}, "begins above 0"),
        ({"k": {"int": [0, 9], "log": 1}}, "must be true or false"),
        ({"k": {"int": [1, 9], "log": True, "step": 2}}, "exclude each other"),
        ({"k": {"int": [1, 9], "step": 0}}, "step = 0: must be above 0"),
        ({"k": {"choice": []}}, "expected a list of values"),
        ({"k": {"choice": [[1]]}}, r"\[1\] is no number"),
        ({"k": {"grid": [1, 1]}}, "names a value twice"),
    ],
)
def test_what_is_wrong_is_said(raw: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_space(raw, source="my.toml")


def test_an_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown key 'graph.kk' in \[space\]; did you mean"):
        check_keys(parse_space({"graph.kk": {"int": [1, 2]}}), {"graph.k", "seed"})
    check_keys(parse_space({"graph.k": {"int": [1, 2]}}), {"graph.k"})
