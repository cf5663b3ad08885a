"""Variance on the graph against dense matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.local_view import LocalGraphView
from labelmesh.graph_store.solvers.acquisition import neighbors_of
from labelmesh.graph_store.solvers.acquisition_variance import (
    covariance,
    random_numbers,
    select_by_variance,
)
from scipy.sparse import csr_array
from torch import Tensor

TAU = 1e-2


@pytest.fixture
def unknown() -> Tensor:
    """All but three labeled nodes and one that is absent."""
    mask = torch.ones(120, dtype=torch.bool)
    mask[[3, 50, 90, 117]] = False
    return mask


@pytest.fixture
def dense(w: LocalAffinity, unknown: Tensor) -> Tensor:
    """C, zero for known nodes."""
    weights = torch.from_numpy(w.to_scipy().toarray())
    degrees = weights.sum(1)
    precision = torch.diag(degrees + TAU * degrees[unknown].mean()) - weights
    rows = unknown.nonzero()[:, 0]
    out = torch.zeros(120, 120, dtype=torch.float64)
    out[rows[:, None], rows] = torch.linalg.inv(precision[rows[:, None], rows])
    return out


def gains(c: Tensor, kind: str) -> Tensor:
    total = c.square().sum(0) if kind == "vopt" else c.sum(0).square()
    return total / c.diagonal().clamp(min=1e-12)


def observed(c: Tensor, node: int) -> Tensor:
    return c - torch.outer(c[node], c[node]) / c[node, node]


def order_of(place: Tensor) -> list[int]:
    return [int(row) for row in torch.argsort(place)[(place < 0).sum() :]]


def test_factor_at_full_rank_is_the_covariance(
    view: LocalGraphView, w: LocalAffinity, unknown: Tensor, dense: Tensor
) -> None:
    field = covariance(w, view.node_ids, unknown, rank=500, tau=TAU, tol=1e-11)
    assert field.factor.shape == (120, 116)
    torch.testing.assert_close(field.factor @ field.factor.T, dense, rtol=0, atol=1e-7)
    assert bool((field.conditional <= dense.diagonal() + 1e-12).all())


@pytest.mark.parametrize("kind", ["vopt", "sigma_opt"])
def test_choice_at_full_rank_is_that_of_dense_matrices(
    view: LocalGraphView, w: LocalAffinity, unknown: Tensor, dense: Tensor, kind: Any
) -> None:
    field = covariance(w, view.node_ids, unknown, rank=500, tau=TAU, tol=1e-11)
    among = unknown & (torch.arange(120) % 5 > 0)
    place, score = select_by_variance(view, field, 12, kind=kind, among=among, apart=False)
    order, c = order_of(place), dense
    score = score * (dense.trace() if kind == "vopt" else dense.sum())
    for node in order:
        value = gains(c, kind)
        assert score[node] == pytest.approx(float(value[node]), rel=1e-5)
        assert value[node] >= value[among].max() * (1 - 1e-5)
        c, among[node] = observed(c, node), False
    if kind == "vopt":
        # Every score is what its label takes from the trace.
        assert float(score.sum()) == pytest.approx(float(dense.trace() - c.trace()), rel=1e-5)
    else:
        assert float(score.sum()) == pytest.approx(float(dense.sum() - c.sum()), rel=1e-5)
    assert bool((score[place < 0] == 0).all())


@pytest.mark.parametrize(("kind", "share"), [("vopt", 0.85), ("sigma_opt", 0.95)])
def test_few_directions_find_nearly_as_much(
    view: LocalGraphView, w: LocalAffinity, unknown: Tensor, dense: Tensor, kind: Any, share: float
) -> None:
    field = covariance(w, view.node_ids, unknown, rank=30, tau=TAU)
    place, _ = select_by_variance(view, field, 8, kind=kind, among=unknown, apart=False)
    c, best, size = dense, dense, torch.trace if kind == "vopt" else torch.sum
    for node in order_of(place):
        c = observed(c, node)
        best = observed(best, int(torch.where(unknown, gains(best, kind), -1.0).argmax()))
    assert float(size(dense) - size(c)) > share * float(size(dense) - size(best))


def test_middle_of_a_path_tells_most() -> None:
    """Precision of a path with tau -> 0 and both ends known: C is that of a Brownian bridge."""
    n = 9
    path = torch.diag(torch.ones(n - 1, dtype=torch.float64), 1)
    w = LocalAffinity.from_scipy(csr_array((path + path.T).numpy()))
    ids = torch.arange(n)
    view = LocalGraphView(torch.full((n, 1), -1), torch.zeros(n, 1), torch.zeros(n, 1))
    unknown = (ids > 0) & (ids < n - 1)
    field = covariance(w, ids, unknown, tau=1e-9, tol=1e-12)
    bridge = torch.minimum(ids, ids[:, None]) * (n - 1 - torch.maximum(ids, ids[:, None])) / (n - 1)
    torch.testing.assert_close(field.factor @ field.factor.T, bridge.double(), atol=1e-6, rtol=0)
    place, _ = select_by_variance(view, field, 1, kind="sigma_opt", among=unknown)
    assert place.argmax() == 4


def test_weights_and_classes(view: LocalGraphView, w: LocalAffinity, unknown: Tensor) -> None:
    field = covariance(w, view.node_ids, unknown, rank=20, tau=TAU)
    only = torch.zeros(120)
    only[77] = 1
    place, _ = select_by_variance(view, field, 1, kind="vopt", among=unknown, weight=only)
    assert order_of(place) == [77]
    classes = (torch.arange(120) >= 110).long()
    place, _ = select_by_variance(
        view, field, 12, kind="vopt", among=unknown, classes=classes, num_classes=2
    )
    # Nine of the ten nodes of class 1 may be chosen; classes take turns, in any order, until then.
    turns = [classes[node] for node in order_of(place)]
    assert [int(a) + int(b) for a, b in zip(turns[::2], turns[1::2])] == [1] * 6


def test_neighbours_of_a_chosen_node_wait(
    view: LocalGraphView, w: LocalAffinity, unknown: Tensor
) -> None:
    field = covariance(w, view.node_ids, unknown, rank=20, tau=TAU)
    place, _ = select_by_variance(view, field, 40, kind="sigma_opt", among=unknown)
    order, near = order_of(place), torch.zeros(120, dtype=torch.bool)
    waited = []
    for node in order:
        waited.append(bool(near[node]))
        near |= neighbors_of(view, torch.arange(120) == node)
    # First those that are apart, then, once all are chosen or next to a chosen one, the others.
    first = waited.index(True)
    assert 5 < first < 40
    chosen = torch.zeros(120, dtype=torch.bool)
    chosen[order[:first]] = True
    assert bool((chosen | neighbors_of(view, chosen))[unknown].all())


def test_unequal_clusters_that_nobody_knows() -> None:
    """Where no label is near, the larger cluster tells more about the sum."""
    blocks = torch.block_diag(torch.ones(4, 4), torch.ones(9, 9), torch.ones(6, 6)).double()
    w = LocalAffinity.from_scipy(csr_array(blocks.fill_diagonal_(0).numpy()))
    view = LocalGraphView(torch.full((19, 1), -1), torch.zeros(19, 1), torch.zeros(19, 1))
    unknown = torch.ones(19, dtype=torch.bool)
    field = covariance(w, view.node_ids, unknown, tol=1e-10)
    place, _ = select_by_variance(view, field, 3, kind="sigma_opt", among=unknown)
    # All nodes of a cluster are the same; the lowest id is taken.
    assert order_of(place) == [4, 13, 0]


def test_probes_are_a_function_of_node_column_and_seed() -> None:
    ids = torch.arange(5000)
    x = random_numbers(ids, 40, seed=3)
    assert torch.equal(x[1000:1010], random_numbers(ids[1000:1010], 40, seed=3))
    assert bool((x[:, 0] == 1).all())
    x, other = x[:, 1:], random_numbers(ids, 40, seed=4)[:, 1:]
    assert -1 <= float(x.min()) < -0.999
    assert 0.999 < float(x.max()) < 1
    # Even in [-1, 1): variance 1/3, columns and seeds independent, within 4.5 deviations.
    products = torch.cat([x.T @ x - 5000 / 3 * torch.eye(39), x.T @ other])
    assert float(products.abs().max()) < 4.5 * 5000**0.5 / 3
    assert float(x.sum(0).abs().max()) < 4.5 * (5000 / 3) ** 0.5


def test_bad_fields(view: LocalGraphView, w: LocalAffinity, unknown: Tensor) -> None:
    nobody = torch.zeros(120, dtype=torch.bool)
    with pytest.raises(ValueError, match="every node is labeled"):
        covariance(w, view.node_ids, nobody)
    for options in ({"rank": 0}, {"tau": 0.0}):
        with pytest.raises(ValueError, match="rank must be at least 1 and tau > 0"):
            covariance(w, view.node_ids, unknown, **options)  # type: ignore[arg-type]
    field = covariance(w, view.node_ids, unknown, rank=3)
    with pytest.raises(ValueError, match="count = 2, but only 1 nodes"):
        select_by_variance(view, field, 2, kind="vopt", among=torch.arange(120) == 7)
