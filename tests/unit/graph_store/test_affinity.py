"""Edge weights against dense formulas, and SciPy in and out."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from labelmesh.graph_store.affinity import Affinity, LocalAffinity, power_affinity
from labelmesh.graph_store.local_view import LocalGraphView
from labelmesh.graph_store.view import Affinity as AffinityProtocol
from labelmesh.graph_store.view import GraphView
from torch import Tensor


@pytest.fixture
def view() -> LocalGraphView:
    """50 nodes with up to 4 neighbours."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randperm(50, generator=generator)[:4] for _ in range(50)])
    ids = torch.where(ids == torch.arange(50)[:, None], -1, ids)
    ids[7] = -1
    distances = torch.rand(50, 4, generator=generator, dtype=torch.float64).sort(1).values * 1.9
    distances = torch.where(ids < 0, torch.inf, distances)
    similarity = torch.where(ids < 0, 0.0, 1 - distances.square() / 2)
    return LocalGraphView(ids, similarity, distances)


def dense_edges(view: LocalGraphView) -> list[tuple[int, int, float]]:
    return [
        (i, j, d)
        for i, (ids, ds) in enumerate(zip(view.neighbor_ids.tolist(), view.distances.tolist()))
        for j, d in zip(ids, ds)
        if j >= 0
    ]


@pytest.mark.parametrize("gamma", [0.5, 1.0, 3.0])
def test_power_weights_are_a_plus_its_transpose(view: LocalGraphView, gamma: float) -> None:
    a = np.zeros((50, 50))
    for i, j, d in dense_edges(view):
        a[i, j] = max(0.0, 1 - d * d / 2) ** gamma
    w = view.affinity("power", gamma=gamma)
    np.testing.assert_allclose(w.to_scipy().toarray(), a + a.T, rtol=1e-12)
    np.testing.assert_allclose(w.degrees, (a + a.T).sum(1), rtol=1e-12)


def test_self_tuning_weights_lie_on_the_union_of_edges(view: LocalGraphView) -> None:
    d = view.distances
    eps = torch.where(torch.isinf(d), 0, d).amax(1).tolist()
    expected = np.zeros((50, 50))
    for i, j, distance in dense_edges(view):
        weight = np.exp(-4 * distance**2 / (max(eps[i], 1e-10) * max(eps[j], 1e-10)))
        expected[i, j] = max(expected[i, j], weight)
        expected[j, i] = expected[i, j]
    found = view.affinity("self_tuning").to_scipy().toarray()
    np.testing.assert_allclose(found, np.maximum(expected, expected.T), rtol=1e-12)


def test_identical_points_have_weight_one() -> None:
    zeros = torch.zeros(3, 2, dtype=torch.float64)
    view = LocalGraphView(torch.tensor([[1, 2], [0, 2], [0, 1]]), zeros + 1, zeros)
    assert view.affinity("self_tuning").to_scipy().toarray().tolist() == [
        [0, 1, 1],
        [1, 0, 1],
        [1, 1, 0],
    ]


def test_scaling_distances_leaves_self_tuning_weights(view: LocalGraphView) -> None:
    scaled = LocalGraphView(view.neighbor_ids, view.similarity, view.distances * 1e3)
    np.testing.assert_allclose(
        scaled.affinity("self_tuning").csr.vals, view.affinity("self_tuning").csr.vals, rtol=1e-12
    )


def test_protocols_are_kept(view: LocalGraphView) -> None:
    assert isinstance(view, GraphView)
    assert isinstance(view.affinity("power"), AffinityProtocol)
    assert Affinity is LocalAffinity


def test_scipy_goes_in_and_comes_out(view: LocalGraphView) -> None:
    matrix = view.affinity("power", gamma=2.0).to_scipy()
    for kind in (matrix, matrix.tocoo(), scipy.sparse.csc_matrix(matrix)):
        back = Affinity.from_scipy(kind).to_scipy()  # type: ignore[arg-type]
        assert abs(back - matrix).max() == 0
    f = torch.rand(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    np.testing.assert_allclose(Affinity.from_scipy(matrix).matmul(f), matrix @ f.numpy())


def test_from_scipy_copies(view: LocalGraphView) -> None:
    matrix = view.affinity("power").to_scipy()
    w = Affinity.from_scipy(matrix)
    before = w.csr.vals.clone()
    matrix.data[:] = 0
    assert torch.equal(w.csr.vals, before)


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((2, 3)), "square matrix, got shape"),
        ([[0.0, np.nan], [np.nan, 0.0]], "NaN or infinity"),
        ([[0.0, -1.0], [-1.0, 0.0]], "must not be negative, the smallest is -1"),
        ([[0.0, 0.0], [0.0, 2.0]], "node 1 has a weight to itself"),
        ([[0.0, 1.0], [0.0, 0.0]], "must be symmetric"),
    ],
)
def test_bad_weights_are_named(matrix: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Affinity.from_scipy(scipy.sparse.csr_array(np.asarray(matrix)))


def test_gamma_must_be_positive() -> None:
    ids: Tensor = torch.tensor([[1], [0]])
    with pytest.raises(ValueError, match="gamma must be > 0, got 0"):
        power_affinity(ids, torch.ones(2, 1), 0.0)
