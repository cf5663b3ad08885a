"""Draws of k-means++: their distribution, and that nothing but ids decides them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from labelmesh.graph_store.kernels.fixed_point import make_grid
from labelmesh.graph_store.kernels.races import exponentials, race
from labelmesh.graph_store.kernels.whole_rows import WholeRows
from labelmesh.graph_store.solvers.kmeans_seeding import OwnRows, draw, plusplus
from torch import Tensor


def rows_of(x: Tensor) -> OwnRows:
    grid = make_grid(float(x.abs().max()), len(x), x.shape[1])
    return OwnRows(x, torch.arange(len(x)), grid, lambda y: y, lambda y: y)


def test_exponentials_are_minus_the_logarithm() -> None:
    u = torch.cat([torch.rand(1000, dtype=torch.float64), torch.tensor([2.0**-53, 1 - 2.0**-53])])
    torch.testing.assert_close(exponentials(u), -u.log(), rtol=1e-9, atol=1e-12)


def test_races_are_won_in_proportion_to_weights() -> None:
    weights = torch.tensor([0.0, 1.0, 2.0, 5.0, 0.25], dtype=torch.float64)
    ids, draws = torch.tensor([4, 9, 1, 7, 3]), 4000
    wins = np.zeros(5)
    for step in range(draws // 40):
        _, at = race(11, step, 40, ids, weights)
        wins += np.bincount(at.numpy(), minlength=5)
    expected = weights.numpy() / float(weights.sum())
    spread = np.sqrt(expected * (1 - expected) / draws)
    assert np.all(np.abs(wins / draws - expected) <= 4 * spread)


@pytest.mark.parametrize("first", range(4))
def test_centers_are_drawn_by_squared_distance(first: int) -> None:
    x = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    own, draws, trials = rows_of(x), 2000, 50
    start = own.grid.rows(x[first : first + 1])
    rows = WholeRows(x, own.grid, start[0], own.all_max)
    rows.offer(start)
    rows.take(0)
    counts = np.zeros(4)
    for step in range(draws // trials):
        drawn, ids = draw(own, 5, step, trials, rows.nearest)
        assert torch.equal(drawn / own.grid.scale, x[ids].double())
        counts += np.bincount(ids.numpy(), minlength=4)
    squares = (x - x[first]).square().double()[:, 0].numpy()
    expected = squares / squares.sum()
    spread = np.sqrt(expected * (1 - expected) / draws)
    assert np.all(np.abs(counts / draws - expected) <= 4 * spread)


def test_greedy_takes_the_candidate_that_leaves_least() -> None:
    """Many trials see every row: the second center is the best there is."""
    x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    own = rows_of(x)
    for seed in range(5):
        centers = plusplus(own, 2, seed=seed, num_trials=1000) / own.grid.scale
        to_first = (x - centers[0]).square().sum(1)
        left = [float(torch.minimum(to_first, (x - y).square().sum(1)).sum()) for y in x]
        found = torch.minimum(to_first, (x - centers[1]).square().sum(1)).sum()
        assert float(found) == pytest.approx(min(left), rel=1e-5)


def test_centers_are_different_rows_even_if_rows_are_equal() -> None:
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).repeat(4, 1)
    own = rows_of(x)
    centers = plusplus(own, 8, seed=0) / own.grid.scale
    assert len(torch.unique(centers[:2], dim=0)) == 2
    assert sorted(centers[:, 0].tolist()) == [0.0] * 4 + [1.0] * 4


def test_squared_distances_are_whole_and_sums_exact() -> None:
    x = 100 + torch.randn(300, 50, generator=torch.Generator().manual_seed(1))
    own = rows_of(x)
    grid_rows = own.grid.rows(x)
    rows = WholeRows(x, own.grid, grid_rows[7], lambda y: y)
    for points in (grid_rows[[7]], grid_rows[[1, 5, 200]]):
        totals = rows.offer(points)
        rows.take(0)
        assert torch.equal(rows.nearest, rows.nearest.round())
        assert (int(totals[0, 0]) << 26) + int(totals[0, 1]) == sum(map(int, rows.nearest.tolist()))
    expected = torch.minimum(
        (x.double() - x[7].double()).square().sum(1), (x.double() - x[1].double()).square().sum(1)
    )
    unit = math.sqrt(float(rows.nearest.sum() / expected.sum()))
    torch.testing.assert_close(rows.nearest / unit**2, expected, rtol=1e-4, atol=1e-4)
