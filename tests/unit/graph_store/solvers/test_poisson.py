"""Poisson learning against dense pseudo-inverses."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.solvers import poisson
from torch import Tensor


def sources(labels: Tensor) -> Tensor:
    """sum_j (y_j - ybar) delta_j."""
    y = torch.eye(int(labels.max()) + 1, dtype=torch.float64)[labels.clamp(min=0)]
    return (labels >= 0)[:, None] * (y - y[labels >= 0].mean(0))


def dense_least_squares(w: LocalAffinity, b: Tensor) -> Tensor:
    matrix = torch.from_numpy(w.to_scipy().toarray())
    degrees = matrix.sum(1)
    scale = torch.where(degrees > 0, degrees.clamp(min=1e-300).rsqrt(), 0.0)[:, None]
    normalized = torch.diag((degrees > 0).double()) - scale * matrix * scale.T
    return scale * (torch.linalg.pinv(normalized, hermitian=True, rtol=1e-10) @ (scale * b))


def test_equation_holds_with_weighted_mean_zero(w: LocalAffinity, labels: Tensor) -> None:
    u = poisson(w, labels)
    matrix = torch.from_numpy(w.to_scipy().toarray())
    torch.testing.assert_close(
        torch.diag(matrix.sum(1)) @ u - matrix @ u, sources(labels), rtol=0, atol=1e-10
    )
    torch.testing.assert_close(
        matrix.sum(1) @ u, torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9
    )
    torch.testing.assert_close(u, dense_least_squares(w, sources(labels)), rtol=0, atol=1e-9)


def test_pair_by_hand() -> None:
    """u_0 - u_1 = 1/2 in the first column, and both sum to zero."""
    w = LocalAffinity.from_scipy(scipy.sparse.csr_array(np.array([[0.0, 1.0], [1.0, 0.0]])))
    u = poisson(w, torch.tensor([0, 1]))
    expected = torch.tensor([[0.25, -0.25], [-0.25, 0.25]], dtype=torch.float64)
    torch.testing.assert_close(u, expected)


def test_disconnected_graph_is_solved_by_least_squares(w: LocalAffinity, labels: Tensor) -> None:
    both = scipy.sparse.block_diag([w.to_scipy(), w.to_scipy(), [[0.0]]], format="csr")
    pair = LocalAffinity.from_scipy(both)
    uneven = torch.cat([labels, torch.full((121,), -1)])
    uneven[[130, 177]] = 2
    u = poisson(pair, uneven)
    torch.testing.assert_close(u, dense_least_squares(pair, sources(uneven)), rtol=0, atol=1e-8)


def test_component_without_labels_and_isolated_nodes_are_zero() -> None:
    block = np.array([[0.0, 1.0], [1.0, 0.0]])
    w = LocalAffinity.from_scipy(scipy.sparse.block_diag([block, block, [[0.0]]], format="csr"))
    u = poisson(w, torch.tensor([0, 1, -1, -1, -1]))
    torch.testing.assert_close(u[2:], torch.zeros(3, 2, dtype=torch.float64), rtol=0, atol=1e-15)


def test_cliques_of_one_class_each_have_no_solution_but_zero() -> None:
    """The sources are constant on each clique: nothing of them lies in the range."""
    block = np.ones((4, 4)) - np.eye(4)
    w = LocalAffinity.from_scipy(scipy.sparse.block_diag([block, block], format="csr"))
    u = poisson(w, torch.tensor([0] * 4 + [1] * 4))
    torch.testing.assert_close(u, torch.zeros(8, 2, dtype=torch.float64), rtol=0, atol=1e-12)


def test_one_class_gives_zeros(w: LocalAffinity) -> None:
    labels = np.full(120, -1)
    labels[3] = 0
    u = poisson(w, labels)
    assert isinstance(u, np.ndarray)
    assert (u == 0).all()


def test_one_label_per_class_finds_two_clusters() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(40, 40, generator=generator, dtype=torch.float64)
    same = torch.arange(40)[:, None] // 20 == torch.arange(40) // 20
    weights = torch.where(same, noise, 0.02 * noise)
    weights = (weights + weights.T).fill_diagonal_(0)
    labels = torch.full((40,), -1)
    labels[4], labels[33] = 0, 1
    u = poisson(LocalAffinity.from_scipy(scipy.sparse.csr_array(weights.numpy())), labels)
    assert u.argmax(1).tolist() == [0] * 20 + [1] * 20


def test_failure_to_converge_is_an_error(w: LocalAffinity, labels: Tensor) -> None:
    with pytest.raises(ValueError, match="no convergence in 2 iterations"):
        poisson(w, labels, max_iter=2)
