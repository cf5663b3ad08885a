"""What is tried next: lists, TPE, and both after a driver died."""

from __future__ import annotations

import math
from typing import Any

import pytest
from labelmesh.tune.points import Point, State
from labelmesh.tune.search import ListSearcher, OptunaSearcher
from labelmesh.tune.space import parse_space

SPACE = parse_space(
    {
        "x": {"uniform": [0.0, 1.0]},
        "k": {"int": [1, 64], "log": True},
        "s": {"uniform": [0.0, 1.0], "step": 0.25},
        "c": {"choice": ["a", "b"]},
    }
)


def point(params: Any, score: float | None, state: State = "finished") -> Point:
    return Point(dict(params), () if score is None else (score,), 1.0, state, None, 3)


def test_a_list_is_gone_through_but_for_what_is_done() -> None:
    searcher = ListSearcher([{"x": 0}, {"x": 1}, {"x": 2}], {1})
    assert [searcher.ask(), searcher.ask(), searcher.ask()] == [(0, {"x": 0}), (2, {"x": 2}), None]


def tpe(num_samples: int = 40, done: Any = (), begun: Any = ()) -> OptunaSearcher:
    return OptunaSearcher(
        SPACE,
        mode="max",
        seed=1,
        num_samples=num_samples,
        done=dict(done),
        begun=dict(begun),
    )


def quality(params: Any) -> float:
    return -((params["x"] - 0.3) ** 2) - abs(math.log(params["k"] / 8)) - (params["c"] == "a")


def test_tpe_comes_near_the_optimum_and_ends() -> None:
    searcher, found = tpe(), []
    while (asked := searcher.ask()) is not None:
        index, params = asked
        assert list(params) == ["x", "k", "s", "c"]
        assert params["s"] in {0.0, 0.25, 0.5, 0.75, 1.0}
        searcher.tell(index, point(params, quality(params)))
        found.append((index, quality(params)))
    assert [index for index, _ in found] == list(range(40))
    assert max(score for _, score in found[20:]) > max(score for _, score in found[:10])


def test_tpe_goes_on_after_a_driver_died() -> None:
    searcher, done, begun = tpe(6), {}, {}
    for _ in range(4):
        asked = searcher.ask()
        assert asked is not None
        begun[asked[0]] = asked[1]
        if asked[0] < 2:
            done[asked[0]] = point(asked[1], quality(asked[1]))
    done[2] = point(begun[2], 0.1, "stopped")
    again = tpe(6, done, begun)
    assert again.ask() == (3, begun[3])
    rest = [again.ask() for _ in range(3)]
    assert [asked and asked[0] for asked in rest] == [4, 5, None]


@pytest.mark.parametrize(
    ("state", "score"), [("stopped", 0.2), ("failed", None), ("stopped", None)]
)
def test_points_that_were_not_finished_are_told_as_such(state: State, score: float | None) -> None:
    searcher = tpe(3)
    index, params = searcher.ask() or (0, {})
    searcher.tell(index, point(params, score, state))
    assert tpe(3, {index: point(params, score, state)}).ask() is not None
    assert searcher.ask() is not None
