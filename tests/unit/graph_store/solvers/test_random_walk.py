"""Random walks that may stop at every node, against dense inverses and walks by hand."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.solvers import random_walk
from torch import Tensor


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.95, 0.999])
def test_solution_equals_dense_inverse(w: LocalAffinity, labels: Tensor, alpha: float) -> None:
    matrix = w.to_scipy().toarray()
    walk = matrix / matrix.sum(1, keepdims=True)
    y = np.eye(3)[labels] * (labels >= 0).numpy()[:, None]
    expected = (1 - alpha) * np.linalg.solve(np.eye(120) - alpha * walk, y)
    found = random_walk(w, labels, alpha)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-10)


def test_pair_by_hand() -> None:
    """The walk alternates: it stops at home after an even number of steps, 1 / (1 + alpha)."""
    w = LocalAffinity.from_scipy(scipy.sparse.csr_array(np.array([[0.0, 3.0], [3.0, 0.0]])))
    u = random_walk(w, np.array([0, 1]), 0.5)
    np.testing.assert_allclose(u, [[2 / 3, 1 / 3], [1 / 3, 2 / 3]], atol=1e-12)


def test_shares_where_all_nodes_are_labeled_sum_to_one(w: LocalAffinity) -> None:
    labels = torch.arange(120) % 4
    u = random_walk(w, labels)
    torch.testing.assert_close(u.sum(1), torch.ones(120, dtype=torch.float64))
    assert u.min() >= -1e-9


def test_label_stays_in_its_component_and_isolated_nodes_at_home() -> None:
    block = np.array([[0.0, 1.0], [1.0, 0.0]])
    w = LocalAffinity.from_scipy(scipy.sparse.block_diag([block, block, [[0.0]]], format="csr"))
    u = random_walk(w, torch.tensor([1, -1, -1, -1, 0]), 0.9)
    assert (u[:2, 1] > 0).all()
    torch.testing.assert_close(u[2:4], torch.zeros(2, 2, dtype=torch.float64))
    torch.testing.assert_close(u[4], torch.tensor([0.1, 0.0], dtype=torch.float64))


def test_scaling_weights_changes_nothing(w: LocalAffinity, labels: Tensor) -> None:
    scaled = LocalAffinity.from_scipy(w.to_scipy() * 1000)
    torch.testing.assert_close(random_walk(scaled, labels), random_walk(w, labels))


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, float("nan")])
def test_alpha_must_lie_between_zero_and_one(
    w: LocalAffinity, labels: Tensor, alpha: float
) -> None:
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        random_walk(w, labels, alpha)


def test_bad_labels_are_named(w: LocalAffinity) -> None:
    with pytest.raises(ValueError, match="no node is labeled"):
        random_walk(w, torch.full((120,), -1))
    with pytest.raises(ValueError, match="label 3 is not below num_classes = 3"):
        random_walk(w, torch.full((120,), 3), num_classes=3)
    with pytest.raises(ValueError, match="no convergence in 1 iterations"):
        random_walk(w, torch.arange(120) % 3, max_iter=1)
