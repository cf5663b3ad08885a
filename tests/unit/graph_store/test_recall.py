"""Measured recall: counts by hand, coverage of the interval, and the same sample everywhere."""

from __future__ import annotations

import pytest
import torch
from labelmesh.graph_store.kernels.knn import knn_self_join
from labelmesh.graph_store.recall import choose_sample, highest_low, measure_recall, recall_of
from torch import Tensor


def doubles(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


def test_hits_are_counted_by_distance() -> None:
    inf = float("inf")
    truth = doubles([1, 2, 2], [1, 2, 3], [1, inf, inf], [inf, inf, inf])
    # A tie under another id counts; what is missing or farther does not; absent nodes are left out.
    ids = torch.tensor([[4, 5, 6], [4, 9, -1], [7, -1, -1], [-1, -1, -1]])
    found = doubles([1, 2, 2], [1, 4, inf], [1, inf, inf], [inf, inf, inf])
    recall = recall_of(ids, found, truth)
    assert recall.value == pytest.approx((1 + 1 / 3 + 1) / 3, rel=1e-15)
    assert recall.sample_size == 3


def test_interval_of_a_perfect_sample_is_that_of_clopper_and_pearson() -> None:
    found = doubles(*[[1.0, 2.0]] * 100)
    recall = recall_of(torch.ones(100, 2, dtype=torch.int64), found, found)
    assert (recall.value, recall.high) == (1.0, 1.0)
    # P(no miss in 100 | share low of perfect nodes) = 2.5 %
    assert recall.low**100 == pytest.approx(0.025, rel=1e-12)
    assert recall.low == highest_low(100)


def test_whole_population_leaves_nothing_to_chance() -> None:
    ids, truth = torch.tensor([[1, 2], [0, 2], [0, 1]]), doubles([1, 2], [1, 2], [1, 2])
    found = doubles([1, 3], [1, 2], [1, 2])
    recall = recall_of(ids, found, truth, num_nodes=3)
    assert recall.low == recall.value == recall.high == pytest.approx(5 / 6, rel=1e-15)
    assert recall_of(ids, found, truth, num_nodes=4).low < recall.value


def test_nothing_measured_says_nothing() -> None:
    none = torch.full((2, 1), -1)
    away = torch.full((2, 1), torch.inf, dtype=torch.float64)
    recall = recall_of(none, away, away)
    assert (recall.value, recall.low, recall.high, recall.sample_size) == (1.0, 0.0, 1.0, 0)


@pytest.mark.parametrize("share_bad", [0.0, 0.002, 0.1])
def test_interval_covers_the_truth(share_bad: float) -> None:
    """Mostly perfect nodes and a few bad ones, where the normal interval alone fails."""
    generator = torch.Generator().manual_seed(1)
    population = torch.where(torch.rand(20_000, generator=generator) < share_bad, 3, 10)
    truth = torch.arange(1.0, 11.0).double()
    hits = (torch.arange(10) < population[:, None]).double()
    distances = truth + 100 * (1 - hits)
    mean = float(population.double().mean() / 10)
    covered = 0
    for seed in range(100):
        sample = choose_sample(20_000, 200, seed)
        found = distances[sample]
        recall = recall_of(torch.ones_like(found, dtype=torch.int64), found, truth.expand(200, 10))
        covered += recall.low <= mean <= recall.high
    assert covered >= 95


def test_sample_depends_on_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    sample = choose_sample(1000, 50, 3)
    assert torch.equal(sample, choose_sample(1000, 50, 3))
    assert not torch.equal(sample, choose_sample(1000, 50, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert sample.unique().shape == (50,)
    assert (sample.diff() > 0).all()
    assert torch.equal(choose_sample(5, 50, 0), torch.arange(5))


def test_size_below_one_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1 node, got size = 0"):
        choose_sample(10, 0, 0)


@pytest.mark.parametrize("metric", ["euclidean", "inner_product"])
def test_measured_recall_of_a_damaged_graph(metric: str) -> None:
    rows = torch.randn(400, 6, generator=torch.Generator().manual_seed(2))
    ids, distances = knn_self_join(rows, 8, metric=metric)  # type: ignore[arg-type]
    exact = measure_recall(rows, ids, distances, sample_size=400, metric=metric)  # type: ignore[arg-type]
    assert (exact.value, exact.low, exact.high) == (1.0, 1.0, 1.0)
    ids[:, 6:], distances[:, 6:] = -1, torch.inf
    whole = measure_recall(rows, ids, distances, sample_size=400, metric=metric)  # type: ignore[arg-type]
    assert whole.value == 0.75
    part = measure_recall(rows, ids, distances, sample_size=50, metric=metric)  # type: ignore[arg-type]
    assert part.value == 0.75
    assert part.low < 0.75 < part.high
    assert part.sample_size == 50
