"""Systems of a graph: two levels give the dense solution in fewer iterations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse
import torch
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.knn_graph import knn_graph
from labelmesh.graph_store.solvers import laplace, local_global, poisson
from labelmesh.graph_store.solvers.conjugate_gradient import CgResult
from labelmesh.graph_store.solvers.graph_system import graph_system
from torch import Tensor

N = 2500  # above the size from which there is a coarse level


@pytest.fixture(scope="module")
def w() -> LocalAffinity:
    """25 clusters, hardly connected."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(25, 6)) * 3
    x = centres[rng.integers(0, 25, N)] + rng.normal(size=(N, 6))
    found: LocalAffinity = knn_graph(x.astype(np.float32), k=10).affinity("self_tuning")
    return found


@pytest.fixture(scope="module")
def labels() -> Tensor:
    given = torch.full((N,), -1)
    given[torch.arange(0, N, 250)] = torch.arange(10) % 4
    return given


def dense(w: LocalAffinity) -> Tensor:
    return torch.from_numpy(w.to_scipy().toarray())


def test_solution_equals_dense_solve(w: LocalAffinity) -> None:
    generator = torch.Generator().manual_seed(1)
    scale = torch.rand(N, generator=generator, dtype=torch.float64)
    scale[::9] = 0
    diagonal = w.degrees + 0.01
    rhs = torch.randn(N, 3, generator=generator, dtype=torch.float64)
    system = graph_system(w, diagonal=diagonal, scale=scale)
    assert system.coarse is not None
    a = torch.diag(diagonal) - scale[:, None] * dense(w) * scale
    result = system.solve(rhs, tol=1e-12, max_iter=1000)
    torch.testing.assert_close(result.solution, torch.linalg.solve(a, rhs), rtol=1e-8, atol=1e-9)


def test_coarse_level_saves_iterations(w: LocalAffinity, labels: Tensor) -> None:
    scale = 1 / w.degrees.sqrt() * 0.999**0.5
    system = graph_system(w, diagonal=torch.ones_like(scale), scale=scale)
    rhs = torch.nn.functional.one_hot(labels.clamp(min=0), 4).double() * (labels >= 0)[:, None]
    two_levels = system.solve(rhs, tol=1e-8, max_iter=1000)
    one_level = replace(system, coarse=None).solve(rhs, tol=1e-8, max_iter=1000)
    assert two_levels.iterations <= 0.6 * one_level.iterations
    torch.testing.assert_close(two_levels.solution, one_level.solution, rtol=0, atol=1e-6)


def test_components_without_a_free_node_or_without_a_seed(w: LocalAffinity) -> None:
    # Isolated pairs among the first nodes: some are groups of their own, some have none.
    pair = scipy.sparse.csr_array(np.array([[0.0, 1.0], [1.0, 0.0]]))
    both = scipy.sparse.block_diag([pair] * 40 + [w.to_scipy()], format="csr")
    joined = LocalAffinity.from_scipy(both)
    labels = torch.full((N + 80,), -1)
    labels[:80] = torch.arange(80) % 2
    labels[80::100] = torch.arange(25) % 3
    u = laplace(joined, labels, tau=0.1)
    free = labels < 0
    a = torch.diag(joined.degrees) - dense(joined) + 0.1 * torch.eye(N + 80, dtype=torch.float64)
    y = torch.nn.functional.one_hot(labels.clamp(min=0), 3).double() * ~free[:, None]
    expected = torch.linalg.solve(a[free][:, free], (dense(joined) @ y)[free])
    torch.testing.assert_close(u[free], expected, rtol=1e-7, atol=1e-9)


def test_poisson_with_many_components(w: LocalAffinity) -> None:
    pair = scipy.sparse.csr_array(np.array([[0.0, 1.0], [1.0, 0.0]]))
    joined = LocalAffinity.from_scipy(
        scipy.sparse.block_diag([pair, w.to_scipy(), w.to_scipy(), pair], format="csr")
    )
    n = joined.num_nodes
    labels = torch.full((n,), -1)
    labels[[0, 1, 100, 700, 3000, 4000, n - 1]] = torch.tensor([0, 1, 0, 1, 2, 0, 1])
    u = poisson(joined, labels)
    laplacian = scipy.sparse.diags_array(joined.degrees.numpy()) - joined.to_scipy()
    y = np.zeros((n, 3))
    y[np.flatnonzero(labels >= 0), labels[labels >= 0]] = 1
    sources = np.where((labels >= 0)[:, None], y - y.sum(0) / 7, 0)
    # Sources of a component sum to zero after the projection of D^-1/2 b on the range.
    _, part = scipy.sparse.csgraph.connected_components(joined.to_scipy(), directed=False)
    degrees = joined.degrees.numpy()
    for c in range(part.max() + 1):
        rows = part == c
        sources[rows] -= degrees[rows, None] * sources[rows].sum(0) / degrees[rows].sum()
        np.testing.assert_allclose(degrees[rows] @ u[torch.from_numpy(rows)].numpy(), 0, atol=1e-9)
    np.testing.assert_allclose(laplacian @ u.numpy(), sources, atol=1e-8)


def test_soft_labels_equal_dense_solve(w: LocalAffinity, labels: Tensor) -> None:
    mu = 2.5
    u = laplace(w, labels, fidelity=mu, on_unreached="uniform", num_classes=4)
    y = torch.nn.functional.one_hot(labels.clamp(min=0), 4).double() * (labels >= 0)[:, None]
    residual = w.degrees[:, None] * u - w.matmul(u) + mu * (labels >= 0)[:, None] * (u - y)
    reached = (u.sum(1) - 1).abs() < 1e-6
    assert reached.all()  # rows of soft labels sum to 1 too
    assert residual.abs().max() < 1e-8
    hard = laplace(w, labels, on_unreached="uniform", num_classes=4)
    strong = laplace(w, labels, fidelity=1e4, tol=1e-13, num_classes=4)
    torch.testing.assert_close(strong, hard, rtol=0, atol=1e-2)


@pytest.mark.parametrize("solver", [laplace, poisson, local_global])
def test_start_near_the_solution_saves_iterations(
    w: LocalAffinity, labels: Tensor, solver: object
) -> None:
    assert callable(solver)
    results: list[CgResult] = []
    extra = {"on_unreached": "uniform"} if solver is laplace else {}
    cold = solver(w, labels, tol=1e-9, on_solve=results.append, **extra)
    warm = solver(w, labels, tol=1e-9, x0=cold + 1e-6, on_solve=results.append, **extra)
    assert results[1].iterations < results[0].iterations
    torch.testing.assert_close(warm, cold, rtol=0, atol=1e-6)
    history = results[0].history
    assert history.shape == (results[0].iterations + 1, 4)
    assert (history[-1] <= 1e-9).all()
    torch.testing.assert_close(history[0], torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("solver", [laplace, poisson, local_global])
def test_single_precision_is_near_double(labels: Tensor, solver: object) -> None:
    assert callable(solver)
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(2))
    w = knn_graph(x, k=10).affinity("self_tuning")
    single = solver(w, labels, tol=1e-5, dtype=torch.float32)
    double = solver(w, labels, tol=1e-9)
    assert single.dtype == torch.float32
    scale = float(double.abs().max())
    assert (single.double() - double).abs().max() < 2e-3 * scale


def test_what_single_precision_cannot_solve_is_said(w: LocalAffinity, labels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"dtype=torch\.float64"):
        poisson(w, labels, tol=1e-7, dtype=torch.float32)


def test_result_does_not_depend_on_the_order_of_nodes(w: LocalAffinity, labels: Tensor) -> None:
    order = torch.randperm(N, generator=torch.Generator().manual_seed(4))
    mixed = LocalAffinity.from_scipy(w.to_scipy()[order.numpy()][:, order.numpy()])
    u = laplace(w, labels, on_unreached="uniform")
    permuted = laplace(mixed, labels[order], on_unreached="uniform")
    torch.testing.assert_close(permuted, u[order], rtol=0, atol=1e-7)
