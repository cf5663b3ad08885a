"""p-Laplace learning against SciPy's minimisers, closed forms and the equation itself."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.solvers import laplace, p_laplace
from torch import Tensor


def path_graph(weights: list[float]) -> LocalAffinity:
    w = np.array(weights)
    return LocalAffinity.from_scipy(scipy.sparse.diags_array([w, w], offsets=[-1, 1]))


def random_graph(n: int, seed: int) -> tuple[LocalAffinity, Tensor]:
    """A connected graph of a ring and random chords, with four labels of three classes."""
    rng = np.random.default_rng(seed)
    matrix = np.triu(rng.random((n, n)) * (rng.random((n, n)) < 0.2), 1)
    matrix[np.arange(n - 1), np.arange(1, n)] = rng.random(n - 1) + 0.1
    labels = torch.full((n,), -1)
    labels[torch.from_numpy(rng.permutation(n)[:4])] = torch.tensor([0, 1, 2, 0])
    return LocalAffinity.from_scipy(scipy.sparse.csr_array(matrix + matrix.T)), labels


def flux(w: LocalAffinity, u: Tensor, p: float) -> Tensor:
    """sum_j w_ij |u_i - u_j|^(p-2) (u_i - u_j), dense."""
    d = u[:, None] - u
    matrix = torch.from_numpy(w.to_scipy().toarray())[:, :, None]
    return (matrix * d.abs().pow(p - 2) * d).sum(1)


def minimised(w: LocalAffinity, labels: Tensor, p: float, tau: float, c: int) -> np.ndarray:
    matrix, fixed = w.to_scipy().toarray(), (labels >= 0).numpy()
    y = (labels == c).numpy().astype(float)

    def energy(free: np.ndarray) -> tuple[float, np.ndarray]:
        u = y.copy()
        u[~fixed] = free
        d = u[:, None] - u
        gradient = (matrix * np.abs(d) ** (p - 2) * d).sum(1) + tau * u
        value = (matrix * np.abs(d) ** p).sum() / (2 * p) + tau / 2 * (free**2).sum()
        return 1e4 * value, 1e4 * gradient[~fixed]

    found = scipy.optimize.minimize(
        energy,
        np.full((~fixed).sum(), y[fixed].mean()),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 5000, "maxfun": 20000, "ftol": 1e-16, "gtol": 1e-10},
    )
    y[~fixed] = found.x
    return y


@pytest.mark.parametrize("p", [2.0, 2.4, 3.0, 4.0])
@pytest.mark.parametrize("tau", [0.0, 0.05])
def test_solution_is_the_minimum_that_scipy_finds(p: float, tau: float) -> None:
    w, labels = random_graph(25, 0)
    u = p_laplace(w, labels, p, tau, tol=1e-12)
    for c in range(3):
        np.testing.assert_allclose(u[:, c], minimised(w, labels, p, tau, c), atol=2e-4)


@pytest.mark.parametrize("p", [2.5, 3.0, 5.0, 7.3, 10.0])
@pytest.mark.parametrize("tau", [0.0, 0.01])
def test_gradient_of_the_energy_vanishes_at_unlabeled_nodes(
    w: LocalAffinity, labels: Tensor, p: float, tau: float
) -> None:
    u = p_laplace(w, labels, p, tau, tol=1e-9)
    left = flux(w, u, p)
    inner = (left + tau * u)[labels < 0].norm(dim=0)
    assert (inner <= 1.001e-9 * left[labels >= 0].norm(dim=0)).all()
    assert torch.equal(u[labels >= 0], torch.eye(3, dtype=torch.float64)[labels[labels >= 0]])


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10_000), p=st.floats(2.0, 12.0), n=st.integers(6, 30))
def test_maximum_principle(seed: int, p: float, n: int) -> None:
    w, labels = random_graph(n, seed)
    u = p_laplace(w, labels, p)
    assert u.min() >= -1e-7
    assert u.max() <= 1 + 1e-7


@pytest.mark.parametrize("p", [2.0, 3.0, 6.0])
def test_path_is_divided_like_resistances(p: float) -> None:
    """One flow passes all edges: w d^(p-1) is constant, so d goes with w^(-1 / (p - 1))."""
    weights = [1.0, 4.0, 0.25, 2.0, 1.0]
    labels = torch.tensor([0, -1, -1, -1, -1, 1])
    d = torch.tensor(weights, dtype=torch.float64).pow(-1 / (p - 1))
    expected = torch.cat([torch.zeros(1).double(), (d / d.sum()).cumsum(0)])
    u = p_laplace(path_graph(weights), labels, p, tol=1e-12)
    torch.testing.assert_close(u[:, 1], expected, rtol=0, atol=1e-7)


def test_two_is_laplace(w: LocalAffinity, labels: Tensor) -> None:
    torch.testing.assert_close(
        p_laplace(w, labels, 2.0, 0.1, tol=1e-10), laplace(w, labels, 0.1, tol=1e-10)
    )


def test_is_continuous_at_two(w: LocalAffinity, labels: Tensor) -> None:
    near = p_laplace(w, labels, 2.001)
    assert (near - laplace(w, labels)).abs().max() < 0.005


def test_two_classes_sum_to_one(w: LocalAffinity, labels: Tensor) -> None:
    two = torch.where(labels == 2, 1, labels)
    u = p_laplace(w, two, 4.0, tol=1e-12)
    torch.testing.assert_close(u.sum(1), torch.ones(120, dtype=torch.float64), rtol=0, atol=1e-3)


def test_larger_p_spikes_less() -> None:
    """At a label on a grid the values next to it come closer as p grows."""
    side = 11
    line = scipy.sparse.diags_array([np.ones(side - 1)] * 2, offsets=[-1, 1])
    grid = LocalAffinity.from_scipy(scipy.sparse.kronsum(line, line).tocsr())
    labels = torch.full((side * side,), -1)
    labels[2 * side + 2], labels[8 * side + 8] = 0, 1
    jumps = [float(1 - p_laplace(grid, labels, p)[2 * side + 3, 0]) for p in (2.0, 3.0, 5.0, 10.0)]
    assert jumps == sorted(jumps, reverse=True)
    assert jumps[-1] < 0.5 * jumps[0]


def test_permuted_nodes_and_classes(w: LocalAffinity, labels: Tensor) -> None:
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    permuted = LocalAffinity.from_scipy(w.to_scipy()[order.numpy()][:, order.numpy()])
    turned = torch.where(labels < 0, -1, (labels + 1) % 3)
    found = p_laplace(permuted, turned[order], 3.0, tol=1e-11)
    expected = p_laplace(w, labels, 3.0, tol=1e-11)[order].roll(1, 1)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_scaling_weights_changes_nothing(w: LocalAffinity, labels: Tensor) -> None:
    scaled = LocalAffinity.from_scipy(w.to_scipy() * 1000)
    torch.testing.assert_close(
        p_laplace(scaled, labels, 5.0), p_laplace(w, labels, 5.0), rtol=0, atol=1e-3
    )


def test_unreached_nodes_are_refused_uniform_or_zero() -> None:
    block = np.ones((3, 3)) - np.eye(3)
    w = LocalAffinity.from_scipy(scipy.sparse.block_diag([block, block], format="csr"))
    labels = torch.tensor([0, 1, -1, -1, -1, -1])
    with pytest.raises(ValueError, match="3 nodes are connected to no labeled node"):
        p_laplace(w, labels)
    u = p_laplace(w, labels, on_unreached="uniform")
    torch.testing.assert_close(u[2:], torch.full((4, 2), 0.5, dtype=torch.float64))
    assert (p_laplace(w, labels, tau=0.5)[3:] == 0).all()


def test_one_class_is_constant_and_all_labeled_is_given(w: LocalAffinity) -> None:
    one = np.full(120, -1)
    one[7] = 0
    u = p_laplace(w, one, 6.0)
    assert isinstance(u, np.ndarray)
    np.testing.assert_allclose(u, np.ones((120, 1)), atol=1e-8)
    every = torch.arange(120) % 3
    assert torch.equal(p_laplace(w, every, 6.0), torch.nn.functional.one_hot(every).double())


def test_class_without_labels_is_zero(w: LocalAffinity, labels: Tensor) -> None:
    assert (p_laplace(w, labels, 4.0, num_classes=5)[:, 3:] == 0).all()


def test_many_duplicates() -> None:
    """Weights of 1 between all of a clique, one weak edge to the next: no edge is flat."""
    block = np.ones((8, 8)) - np.eye(8)
    matrix = scipy.sparse.block_diag([block, block]).tolil()
    matrix[7, 8] = matrix[8, 7] = 1e-6
    labels = torch.full((16,), -1)
    labels[0], labels[15] = 0, 1
    u = p_laplace(LocalAffinity.from_scipy(matrix.tocsr()), labels, 5.0)
    assert u.argmax(1).tolist() == [0] * 8 + [1] * 8


@pytest.mark.parametrize("p", [1.9, float("nan"), float("inf")])
def test_p_below_two_or_infinite_is_refused(w: LocalAffinity, labels: Tensor, p: float) -> None:
    with pytest.raises(ValueError, match="p must be a number >= 2"):
        p_laplace(w, labels, p)


def test_bad_options_are_named(w: LocalAffinity, labels: Tensor) -> None:
    with pytest.raises(ValueError, match="tau must be >= 0, got -1"):
        p_laplace(w, labels, 3.0, -1.0)
    with pytest.raises(ValueError, match=r"tol must be > 0 and max_steps >= 1, got 0\.0 and 200"):
        p_laplace(w, labels, tol=0.0)
    with pytest.raises(ValueError, match="no convergence in 2 Newton steps"):
        p_laplace(w, labels, max_steps=2)
    with pytest.raises(ValueError, match="label 2 is not below num_classes = 2"):
        p_laplace(w, labels, num_classes=2)
