"""Laplace learning against dense solves and harmonic functions by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.solvers import laplace
from labelmesh.graph_store.solvers.laplace import reachable
from torch import Tensor


def path_graph(num_nodes: int) -> LocalAffinity:
    ones = np.ones(num_nodes - 1)
    return LocalAffinity.from_scipy(scipy.sparse.diags_array([ones, ones], offsets=[-1, 1]))


@pytest.mark.parametrize("tau", [0.0, 0.01, 3.0])
def test_solution_equals_dense_solve(w: LocalAffinity, labels: Tensor, tau: float) -> None:
    matrix = torch.from_numpy(w.to_scipy().toarray())
    system = torch.diag(matrix.sum(1) + tau) - matrix
    b, u = labels >= 0, labels < 0
    y = torch.eye(3, dtype=torch.float64)[labels[b]]
    found = laplace(w, labels, tau=tau, tol=1e-13)
    expected = torch.linalg.solve(system[u][:, u], matrix[u][:, b] @ y)
    torch.testing.assert_close(found[u], expected, rtol=0, atol=1e-10)
    assert torch.equal(found[b], y)


def test_path_between_two_labels_is_linear() -> None:
    labels = torch.full((11,), -1)
    labels[0], labels[10] = 0, 1
    expected = torch.linspace(0, 1, 11, dtype=torch.float64)
    torch.testing.assert_close(laplace(path_graph(11), labels)[:, 1], expected)


def test_rows_sum_to_one_and_obey_the_maximum_principle(w: LocalAffinity, labels: Tensor) -> None:
    u = laplace(w, labels)
    torch.testing.assert_close(u.sum(1), torch.ones(120, dtype=torch.float64))
    assert u.min() >= -1e-9
    assert u.max() <= 1 + 1e-9


def test_scaling_weights_changes_nothing(w: LocalAffinity, labels: Tensor) -> None:
    scaled = LocalAffinity.from_scipy(w.to_scipy() * 1000)
    torch.testing.assert_close(laplace(scaled, labels), laplace(w, labels))


def test_unreached_nodes_are_refused_or_uniform() -> None:
    block = np.array([[0.0, 1.0], [1.0, 0.0]])
    w = LocalAffinity.from_scipy(scipy.sparse.block_diag([block, block], format="csr"))
    labels = torch.tensor([1, -1, -1, -1])
    with pytest.raises(ValueError, match=r"2 nodes are connected to no labeled node .*2, 3"):
        laplace(w, labels)
    u = laplace(w, labels, on_unreached="uniform")
    assert u.tolist() == [[0, 1], [0, 1], [0.5, 0.5], [0.5, 0.5]]
    assert (laplace(w, labels, tau=1.0)[2:] == 0).all()


def test_all_nodes_labeled() -> None:
    labels = np.array([0, 1, 0])
    u = laplace(path_graph(3), labels)
    assert isinstance(u, np.ndarray)
    assert u.tolist() == [[1, 0], [0, 1], [1, 0]]


def test_reachable_walks_long_paths() -> None:
    start = torch.zeros(200, dtype=torch.bool)
    start[0] = True
    assert reachable(path_graph(200), start).all()


def test_bad_options_are_named(w: LocalAffinity, labels: Tensor) -> None:
    with pytest.raises(ValueError, match="tau must be >= 0, got -1"):
        laplace(w, labels, tau=-1.0)
    with pytest.raises(ValueError, match="no convergence in 1 iterations"):
        laplace(w, labels, max_iter=1)
