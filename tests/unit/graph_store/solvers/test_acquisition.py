"""Uncertainty by hand, and peaks against an obvious search."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from labelmesh.graph_store.local_view import LocalGraphView
from labelmesh.graph_store.solvers.acquisition import local_max, neighbors_of, uncertainty


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("entropy", [0.0, math.log(2), math.log(4), 1.5 * math.log(2), math.log(4)]),
        ("l2", [0.0, 1 - math.sqrt(0.5), 0.5, 1 - math.sqrt(0.375), 1.0]),
        ("margin", [0.0, 1.0, 1.0, 0.75, 1.0]),
    ],
)
def test_uncertainty_by_hand(kind: Any, expected: list[float], dtype: torch.dtype) -> None:
    rows = [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.25] * 4, [0.5, 0.25, 0.25, 0], [0] * 4]
    found = uncertainty(torch.tensor(rows, dtype=dtype), kind)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=dtype))


def test_one_class_is_certain_and_decayed_rows_are_not() -> None:
    one = torch.tensor([[1.0], [0.25]])
    assert uncertainty(one, "entropy").tolist() == [0, 0]
    assert uncertainty(one, "l2").tolist() == [0, 0.75]
    assert uncertainty(one, "margin").tolist() == [0, 0.75]


def test_bad_distributions() -> None:
    for bad in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="negative, NaN or infinite"):
            uncertainty(torch.tensor([[0.5, bad]]), "l2")
    with pytest.raises(ValueError, match="no column"):
        uncertainty(torch.ones(2, 0), "l2")


def peaks_by_search(view: LocalGraphView, score: torch.Tensor) -> list[bool]:
    edges = {(i, j) for i, row in enumerate(view.neighbor_ids.tolist()) for j in row if j >= 0}
    near = edges | {(j, i) for i, j in edges}
    key = [(s, -i) for i, s in enumerate(score.tolist())]
    return [all(key[i] > key[j] for a, j in near if a == i) for i in range(len(key))]


@pytest.mark.parametrize("levels", [2, 5, 10**6])
def test_peaks_are_those_of_a_search(view: LocalGraphView, levels: int) -> None:
    draw = torch.randint(levels, (120,), generator=torch.Generator().manual_seed(1))
    found = local_max(view, draw.double())
    assert found.tolist() == peaks_by_search(view, draw)
    assert 0 < int(found.sum()) < 60


def test_peaks_are_never_neighbours_even_if_all_are_equal(view: LocalGraphView) -> None:
    found = local_max(view, torch.zeros(120))
    assert bool(found[0])
    assert not bool(found[view.neighbor_ids[found]].any())


def test_a_neighbour_that_is_not_listed_counts_and_lonely_nodes_peak() -> None:
    # 0 lists 1, and 1 lists nobody; 2 is alone.
    view = LocalGraphView(torch.tensor([[1], [-1], [-1]]), torch.zeros(3, 1), torch.zeros(3, 1))
    assert local_max(view, torch.tensor([2.0, 1.0, -torch.inf])).tolist() == [True, False, True]
    assert local_max(view, torch.tensor([1.0, 2.0, 0.0])).tolist() == [False, True, True]


def test_scores_without_order(view: LocalGraphView) -> None:
    score = torch.zeros(120)
    score[7] = math.nan
    with pytest.raises(ValueError, match="score of node 7 is NaN"):
        local_max(view, score)
    with pytest.raises(ValueError, match=r"\(3,\) scores for 120 nodes"):
        local_max(view, torch.zeros(3))


def test_nodes_that_take_no_part_hide_nobody(view: LocalGraphView) -> None:
    score = torch.arange(120.0)
    among = torch.arange(120) % 3 > 0
    found = local_max(view, score, among)
    expected = peaks_by_search(
        LocalGraphView(
            torch.where(among[:, None] & among[view.neighbor_ids], view.neighbor_ids, -1),
            view.similarity,
            view.distances,
        ),
        score,
    )
    assert found.tolist() == [peak and bool(a) for peak, a in zip(expected, among)]


def test_neighbours_are_found_from_both_ends() -> None:
    view = LocalGraphView(torch.tensor([[1], [-1], [1]]), torch.zeros(3, 1), torch.zeros(3, 1))
    assert neighbors_of(view, torch.tensor([False, True, False])).tolist() == [True, False, True]
    assert neighbors_of(view, torch.tensor([True, False, False])).tolist() == [False, True, False]
