"""Reweighted Laplace learning against dense solves with weights made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
import torch
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.solvers import laplace, reweighted_laplace
from labelmesh.graph_store.solvers.nearest_labeled import labeled_distances
from labelmesh.graph_store.solvers.reweighted import Reweighted, poisson_factors
from labelmesh.graph_store.view import Affinity
from torch import Tensor

KINDS = ["wnll", "poisson", "properly"]


def dense_factors(matrix: np.ndarray, labels: np.ndarray, kind: str) -> np.ndarray:
    """The factors of all edges, as an n x n matrix."""
    n, labeled = len(matrix), labels >= 0
    if kind == "poisson":
        source = labeled - labeled.mean()
        a = np.linalg.pinv(np.diag(matrix.sum(1)) - matrix) @ source
        a = a - a.min()
        a = a + 1e-5 * a.max()
        return np.outer(a, a)
    if kind == "wnll":
        a = np.where(labeled, n / labeled.sum(), 1.0)
    else:
        lengths = scipy.sparse.csr_array(matrix)
        lengths.data = matrix.max() / lengths.data
        paths = scipy.sparse.csgraph.dijkstra(lengths, indices=np.flatnonzero(labeled)).min(0)
        with np.errstate(divide="ignore"):
            a = 1 + np.minimum((2.0 / paths) ** 3, 1e7)
    return (a[:, None] + a) / 2


def dense_laplace(matrix: np.ndarray, labels: np.ndarray, tau: float) -> np.ndarray:
    y = np.eye(labels.max() + 1)[labels] * (labels >= 0)[:, None]
    system, u = np.diag(matrix.sum(1) + tau) - matrix, labels < 0
    y[u] = np.linalg.solve(system[u][:, u], matrix[u] @ y)
    return y


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tau", [0.0, 0.3])
def test_solution_equals_dense_solve(
    w: LocalAffinity, labels: Tensor, kind: Any, tau: float
) -> None:
    matrix = w.to_scipy().toarray()
    weighed = matrix * dense_factors(matrix, labels.numpy(), kind)
    found = reweighted_laplace(w, labels.numpy(), kind, tau=tau, tol=1e-12, r0=2.0, alpha=3.0)
    expected = dense_laplace(weighed, labels.numpy(), tau)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7)


def test_star_with_one_label_per_end_by_hand() -> None:
    """0 - 1 - 2 with labels at the ends: reweighting is symmetric, the middle is undecided."""
    w = LocalAffinity.from_scipy(scipy.sparse.diags_array([[1.0, 1], [1.0, 1]], offsets=[-1, 1]))
    for kind in KINDS:
        u = reweighted_laplace(w, torch.tensor([0, -1, 1]), kind)  # type: ignore[arg-type]
        assert u[1].tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("kind", KINDS)
def test_rows_sum_to_one_and_obey_the_maximum_principle(
    w: LocalAffinity, labels: Tensor, kind: Any
) -> None:
    u = reweighted_laplace(w, labels, kind)
    torch.testing.assert_close(u.sum(1), torch.ones(120, dtype=torch.float64))
    assert u.min() >= -1e-8
    assert u.max() <= 1 + 1e-8


@pytest.mark.parametrize("kind", KINDS)
def test_scaling_weights_changes_nothing(w: LocalAffinity, labels: Tensor, kind: Any) -> None:
    scaled = LocalAffinity.from_scipy(w.to_scipy() * 1000)
    expected = reweighted_laplace(w, labels, kind)
    torch.testing.assert_close(
        reweighted_laplace(scaled, labels, kind), expected, rtol=0, atol=1e-7
    )


@pytest.mark.parametrize("kind", KINDS)
def test_permuted_nodes_and_classes(w: LocalAffinity, labels: Tensor, kind: Any) -> None:
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    permuted = LocalAffinity.from_scipy(w.to_scipy()[order.numpy()][:, order.numpy()])
    turned = torch.where(labels < 0, -1, (labels + 1) % 3)
    found = reweighted_laplace(permuted, turned[order], kind)
    expected = reweighted_laplace(w, labels, kind)[order].roll(1, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_unreached_nodes_are_refused_or_uniform(kind: Any) -> None:
    block = np.array([[0.0, 1.0], [1.0, 0.0]])
    w = LocalAffinity.from_scipy(scipy.sparse.block_diag([block, block, [[0.0]]], format="csr"))
    labels = torch.tensor([1, -1, -1, -1, -1])
    with pytest.raises(ValueError, match="3 nodes are connected to no labeled node"):
        reweighted_laplace(w, labels, kind)
    u = reweighted_laplace(w, labels, kind, on_unreached="uniform")
    torch.testing.assert_close(u[:2], torch.tensor([[0.0, 1.0]] * 2, dtype=torch.float64))
    assert (u[2:] == 0.5).all()


@pytest.mark.parametrize("kind", KINDS)
def test_one_class_and_all_labeled(w: LocalAffinity, kind: Any) -> None:
    one = torch.full((120,), -1)
    one[7] = 0
    torch.testing.assert_close(
        reweighted_laplace(w, one, kind), torch.ones(120, 1, dtype=torch.float64)
    )
    every = torch.arange(120) % 3
    expected = torch.nn.functional.one_hot(every).double()
    assert torch.equal(reweighted_laplace(w, every, kind), expected)


def test_poisson_factors_of_each_component_start_at_the_floor(
    w: LocalAffinity, labels: Tensor
) -> None:
    both = scipy.sparse.block_diag([w.to_scipy(), w.to_scipy(), [[0.0]]], format="csr")
    labeled = torch.cat([labels >= 0, labels == 1, torch.zeros(1, dtype=torch.bool)])
    a = poisson_factors(LocalAffinity.from_scipy(both), labeled, tol=1e-12, max_iter=1000)
    assert a[:120].min() == pytest.approx(float(1e-5 * (a.max() - a.min())), rel=1e-9)
    assert a[120:240].min() == a[240] == a[:120].min()
    # Each component's equation holds.
    matrix = torch.from_numpy(w.to_scipy().toarray())
    system = torch.diag(matrix.sum(1)) - matrix
    for part, source in ((a[:120], labels >= 0), (a[120:240], labels == 1)):
        expected = source.double() - source.double().mean()
        torch.testing.assert_close(system @ part, expected, rtol=0, atol=1e-9)


def test_spike_at_few_labels_is_flattened() -> None:
    """A long grid with a label at each end: plain Laplace learning puts the middle at 1/2 +- 0."""
    side = 24
    line = scipy.sparse.diags_array([np.ones(side - 1)] * 2, offsets=[-1, 1])
    grid = LocalAffinity.from_scipy(scipy.sparse.kronsum(line, line).tocsr())
    labels = torch.full((side * side,), -1)
    labels[0], labels[-1] = 0, 1
    flat = laplace(grid, labels)[:, 0].reshape(side, side)[5, 5]
    for kind in KINDS:
        u = reweighted_laplace(grid, labels, kind)[:, 0]  # type: ignore[arg-type]
        assert u.reshape(side, side)[5, 5] > flat + 0.02, kind


def test_reweighted_affinity_keeps_the_promises_of_an_affinity(
    w: LocalAffinity, labels: Tensor
) -> None:
    nodes = torch.rand(120, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
    scaled = Reweighted(w, nodes, "product")
    assert isinstance(scaled, Affinity)
    matrix = torch.from_numpy(w.to_scipy().toarray()) * nodes * nodes[:, None]
    f = torch.rand(120, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(scaled.matmul(f), matrix @ f)
    torch.testing.assert_close(scaled.degrees, matrix.sum(1))


def test_distances_scale_with_r0(w: LocalAffinity, labels: Tensor) -> None:
    """r0 and alpha matter: the limit of small r0 weighs only the edges of labeled nodes."""
    far = labeled_distances(w, labels >= 0)[0].max()
    near = reweighted_laplace(w, labels, "properly", r0=1e-3)
    wide = reweighted_laplace(w, labels, "properly", r0=float(10 * far))
    assert (near - wide).abs().max() > 0.01


def test_bad_options_are_named(w: LocalAffinity, labels: Tensor) -> None:
    with pytest.raises(Exception, match="none"):  # a type error where types are checked
        reweighted_laplace(w, labels, "none")  # type: ignore[arg-type]
    for bad in ({"r0": 0.0}, {"alpha": -1.0}):
        with pytest.raises(ValueError, match="r0 and alpha must be > 0"):
            reweighted_laplace(w, labels, "properly", **bad)
    with pytest.raises(ValueError, match="tau must be >= 0, got -1"):
        reweighted_laplace(w, labels, tau=-1.0)
    with pytest.raises(ValueError, match="got 3 labels for 120 nodes"):
        reweighted_laplace(w, torch.tensor([0, 1, -1]))
