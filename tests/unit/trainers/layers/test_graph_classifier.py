"""Prediction with base rows against a dense solve, and what it does not depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from labelmesh.trainers.layers.classifier import LinearClassifier
from labelmesh.trainers.layers.graph_classifier import (
    INSIDE_LOG,
    GraphClassifier,
    fitting,
    log_probs_with_base,
)
from labelmesh.trainers.layers.graph_learning import GraphLearningLayer
from labelmesh.trainers.method import Base
from torch import Tensor, nn


def dense_probs(features: Tensor, base: Tensor, labels: Tensor, k: int, C: int) -> np.ndarray:
    """(L_uu) U = -L_ub Y with all n x n numbers, in float64."""
    x = torch.cat([features, base]).double().numpy()
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    d = np.linalg.norm(x[:, None] - x[None], axis=2)
    np.fill_diagonal(d, np.inf)
    order = np.argsort(d, axis=1, kind="stable")[:, :k]
    eps = np.maximum(d[np.arange(len(x)), order[:, -1]], 1e-10)
    listed = np.zeros(d.shape, bool)
    np.put_along_axis(listed, order, True, axis=1)
    edge = listed | listed.T
    w = np.where(edge, np.exp(-4 * np.where(edge, d, 0) ** 2 / np.outer(eps, eps)), 0.0)
    b = len(features)
    laplacian = np.diag(w.sum(1)) - w
    return np.linalg.solve(laplacian[:b, :b], w[:b, b:] @ np.eye(C)[labels.numpy()])


def rows(b: int, m: int, d: int = 5, C: int = 3, seed: int = 0) -> tuple[Tensor, Base]:
    rng = torch.Generator().manual_seed(seed)
    base = Base(torch.randn(m, d, generator=rng), torch.arange(m) % C, C)
    return torch.randn(b, d, generator=rng), base


def test_probabilities_are_those_of_a_dense_solve() -> None:
    features, base = rows(20, 9)
    out = log_probs_with_base(GraphLearningLayer(k=6), features, base)
    expected = dense_probs(features, base.features, base.labels, 6, 3)
    np.testing.assert_allclose(out.exp().numpy(), expected + INSIDE_LOG, rtol=1e-5, atol=1e-7)


def test_length_of_features_does_not_matter() -> None:
    features, base = rows(12, 6)
    layer = GraphLearningLayer(k=5)
    scale = torch.rand(12, 1, generator=torch.Generator().manual_seed(1)) + 0.5
    torch.testing.assert_close(
        log_probs_with_base(layer, features * scale, base),
        log_probs_with_base(layer, features, base),
        rtol=1e-4,
        atol=1e-5,
    )


def test_order_of_a_batch_does_not_matter() -> None:
    features, base = rows(15, 6)
    layer = GraphLearningLayer(k=5)
    permutation = torch.randperm(15, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(
        log_probs_with_base(layer, features[permutation], base),
        log_probs_with_base(layer, features, base)[permutation],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("b", [0, 1, 2])
def test_few_rows_have_as_many_neighbours_as_there_are(b: int) -> None:
    features, base = rows(b, 3)
    out = log_probs_with_base(GraphLearningLayer(k=24), features, base)
    assert out.shape == (b, 3)
    torch.testing.assert_close(out.exp().sum(1), torch.ones(b), rtol=1e-5, atol=1e-6)


def test_k_is_lowered_for_one_graph_alone() -> None:
    layer = GraphLearningLayer(k=24, tau=0.5)
    assert (fitting(layer, 10).k, fitting(layer, 10).tau) == (9, 0.5)
    assert layer.k == 24
    assert fitting(layer, 25) is layer


def test_base_rows_are_kept_with_the_network() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = LinearClassifier(nn.Linear(4, 5), 5, 3).eval()
    _, base = rows(7, 6)
    made = GraphClassifier(network, GraphLearningLayer(k=4), base)
    assert {"base_features", "base_labels", "network.classifier.weight"} <= set(made.state_dict())
    assert not made.training
    inputs = torch.randn(7, 4, generator=torch.Generator().manual_seed(3))
    out = made(inputs)
    torch.testing.assert_close(out.features, network.features(inputs))
    expected = log_probs_with_base(GraphLearningLayer(k=4), out.features, base)
    torch.testing.assert_close(out.logits, expected)
