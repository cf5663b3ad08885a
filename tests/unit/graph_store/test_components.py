"""Connected components against SciPy's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.components import components
from labelmesh.graph_store.local_view import LocalGraphView
from scipy.sparse import csr_array, random_array
from scipy.sparse.csgraph import connected_components


def found(w: LocalAffinity) -> np.ndarray:
    n = w.num_nodes
    nobody = torch.full((n, 1), -1), torch.zeros(n, 1), torch.full((n, 1), torch.inf)
    return components(LocalGraphView(*nobody), w).numpy()


def symmetric(rows: list[int], cols: list[int], n: int) -> csr_array:
    half = csr_array((np.ones(len(rows)), (rows, cols)), shape=(n, n))
    return (half + half.T).tocsr()


@pytest.mark.parametrize("density", [0.0, 0.002, 0.005, 0.02])
def test_they_are_those_of_scipy(density: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        half = random_array((300, 300), density=density, rng=rng)
        matrix = (half + half.T).tocsr()
        matrix.setdiag(0)
        _, expected = connected_components(matrix, directed=False)
        largest = {c: int(np.flatnonzero(expected == c).max()) for c in set(expected.tolist())}
        w = LocalAffinity.from_scipy(matrix)
        np.testing.assert_array_equal(found(w), [largest[c] for c in expected.tolist()])


def test_a_long_path_in_any_order_is_one() -> None:
    order = np.random.default_rng(1).permutation(2000).tolist()
    path = LocalAffinity.from_scipy(symmetric(order[:-1], order[1:], 2000))
    assert set(found(path).tolist()) == {1999}


def test_a_weight_of_zero_does_not_join() -> None:
    joined = LocalAffinity.from_scipy(symmetric([0, 2], [1, 3], 4))
    joined.csr.vals[2:] = 0
    assert found(joined).tolist() == [1, 1, 2, 3]
