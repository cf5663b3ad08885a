"""Poisson-MBO against dense heat flow, and on graphs whose classes are known."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.solvers import class_prior_projection, poisson, poisson_mbo
from torch import Tensor


def blocks(sizes: list[int], between: float, seed: int = 0) -> tuple[LocalAffinity, Tensor]:
    """Random weights, `between` times as strong between classes; and the classes."""
    classes = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.rand(len(classes), len(classes), generator=generator, dtype=torch.float64)
    weights = torch.where(classes[:, None] == classes, noise, between * noise)
    weights = (weights + weights.T).fill_diagonal_(0)
    return LocalAffinity.from_scipy(scipy.sparse.csr_array(weights.numpy())), classes


def first_of_each(classes: Tensor) -> Tensor:
    labels = torch.full_like(classes, -1)
    for c in range(int(classes.max()) + 1):
        labels[(classes == c).nonzero()[0, 0]] = c
    return labels


@pytest.mark.parametrize("outer_steps", [1, 3])
def test_steps_are_those_of_dense_heat_flow(
    w: LocalAffinity, labels: Tensor, outer_steps: int
) -> None:
    priors = np.array([0.5, 0.3, 0.2])
    matrix = w.to_scipy().toarray()
    degrees = matrix.sum(1)
    dt = 1 / degrees.max()
    b = 2.5 * (labels >= 0).numpy()[:, None] * (np.eye(3)[labels] - 1 / 3)
    u = np.eye(3)[poisson(w, labels).argmax(1)]
    for _ in range(outer_steps):
        for _ in range(7):
            u = u - dt * (degrees[:, None] * u - matrix @ u - b)
        shifted = class_prior_projection(u, np.full(120, -1), priors).scores
        u = np.eye(3)[shifted.argmax(1)]
    found = poisson_mbo(
        w, labels.numpy(), priors, mu=2.5, inner_steps=7, outer_steps=outer_steps, tol=1e-12
    )
    np.testing.assert_allclose(found, shifted, rtol=0, atol=1e-7)


def test_class_sizes_follow_the_priors(w: LocalAffinity, labels: Tensor) -> None:
    u = poisson_mbo(w, labels, torch.tensor([0.5, 0.3, 0.2]), prior_tol=0.0)
    assert torch.bincount(u.argmax(1)).tolist() == [60, 36, 24]
    torch.testing.assert_close(u.sum(1), torch.ones(120, dtype=torch.float64))


def test_priors_are_by_default_those_of_the_labels(w: LocalAffinity, labels: Tensor) -> None:
    labels[[60, 61]] = 0
    expected = poisson_mbo(w, labels, torch.tensor([0.5, 0.25, 0.25]))
    assert torch.equal(poisson_mbo(w, labels), expected)


def test_one_label_per_class_finds_clusters_of_uneven_size() -> None:
    w, classes = blocks([60, 30, 10], between=0.05)
    priors = torch.tensor([0.6, 0.3, 0.1])
    u = poisson_mbo(w, first_of_each(classes), priors)
    assert torch.equal(u.argmax(1), classes)


def test_two_cliques_of_one_label_each() -> None:
    block = np.ones((6, 6)) - np.eye(6)
    w = LocalAffinity.from_scipy(scipy.sparse.block_diag([block, block], format="csr"))
    labels = torch.full((12,), -1)
    labels[0], labels[11] = 1, 0
    assert poisson_mbo(w, labels).argmax(1).tolist() == [1] * 6 + [0] * 6


def test_permuted_classes_and_nodes() -> None:
    w, classes = blocks([40, 25, 15], between=0.3, seed=3)
    labels, priors = first_of_each(classes), torch.tensor([0.5, 0.3125, 0.1875])
    order = torch.randperm(80, generator=torch.Generator().manual_seed(0))
    permuted = LocalAffinity.from_scipy(w.to_scipy()[order.numpy()][:, order.numpy()])
    turned = torch.where(labels < 0, -1, (labels + 1) % 3)
    found = poisson_mbo(permuted, turned[order], priors.roll(1))
    expected = poisson_mbo(w, labels, priors)[order].roll(1, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_scaling_weights_with_mu_changes_nothing(w: LocalAffinity, labels: Tensor) -> None:
    """dt undoes the scale of L; only the sources feel it."""
    scaled = LocalAffinity.from_scipy(w.to_scipy() * 16)
    torch.testing.assert_close(
        poisson_mbo(scaled, labels, mu=16.0), poisson_mbo(w, labels), rtol=0, atol=1e-7
    )


def test_one_class_takes_all(w: LocalAffinity) -> None:
    labels = np.full(120, -1)
    labels[3] = 0
    u = poisson_mbo(w, labels)
    assert isinstance(u, np.ndarray)
    np.testing.assert_allclose(u, np.ones((120, 1)))


def test_isolated_nodes_and_components_without_labels_stay_finite() -> None:
    block = np.array([[0.0, 1.0], [1.0, 0.0]])
    w = LocalAffinity.from_scipy(scipy.sparse.block_diag([block, block, [[0.0]]], format="csr"))
    u = poisson_mbo(w, torch.tensor([0, 1, -1, -1, -1]))
    assert u.isfinite().all()


def test_bad_options_are_named(w: LocalAffinity, labels: Tensor) -> None:
    bad_priors = [
        ([0.5, 0.5], "must be 3 numbers"),
        ([0.5, 0.5, 0.5], "sum to 1"),
        ([0.5, 0.5, 0.0], "class 2 has prior 0"),
    ]
    for priors, message in bad_priors:
        with pytest.raises(ValueError, match=message):
            poisson_mbo(w, labels, torch.tensor(priors))
    with pytest.raises(ValueError, match="class 3 has prior 0"):
        poisson_mbo(w, labels, num_classes=4)
    for bad in ({"mu": 0.0}, {"inner_steps": 0}, {"outer_steps": 0}, {"prior_tol": -1.0}):
        with pytest.raises(ValueError, match="must be > 0"):
            poisson_mbo(w, labels, **bad)
