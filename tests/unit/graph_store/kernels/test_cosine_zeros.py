"""Rows of zeros under the cosine, against a dense oracle."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from labelmesh.graph_store.kernels.cosine_zeros import ZERO_DISTANCE
from labelmesh.graph_store.knn_graph import knn_graph
from labelmesh.graph_store.local_store import LocalStore
from labelmesh.graph_store.store import StoreSpec
from torch import Tensor

ZERO = [1, 2, 9, 13]
N, K = 14, 6


def rows() -> Tensor:
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    x[ZERO] = 0
    return x


def oracle(queries: Tensor, x: Tensor, is_self: bool) -> tuple[Tensor, Tensor]:
    a = torch.nn.functional.normalize(queries.double(), dim=1)
    cosine = a @ torch.nn.functional.normalize(x.double(), dim=1).T
    if is_self:
        cosine.fill_diagonal_(-torch.inf)
    order = cosine.argsort(dim=1, descending=True, stable=True)[:, :K]
    return order, cosine.gather(1, order)


def test_zero_distance_is_that_of_orthogonal_rows() -> None:
    g = knn_graph(torch.eye(3), 2, metric="cosine")
    assert g.as_view().distances.tolist() == [[ZERO_DISTANCE] * 2] * 3


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_graph_has_similarity_zero_at_them(backend: str) -> None:
    ids, cosine = oracle(rows(), rows(), True)
    g = knn_graph(rows(), K, metric="cosine", backend=backend)  # type: ignore[arg-type]
    assert torch.equal(g.ids, ids)
    np.testing.assert_allclose(g.distances, cosine, atol=1e-6)


def test_store_says_the_same_and_queries_too() -> None:
    store = LocalStore(StoreSpec(num_nodes=N, dim=4, num_classes=2, k=K))
    store.put(torch.arange(N), rows())
    store.update_knn()
    for found, expected in (
        (store.neighbors(torch.arange(N)), oracle(rows(), rows(), True)),
        (store.query(rows(), k=K), oracle(rows(), rows(), False)),
    ):
        assert torch.equal(found[0], expected[0])
        np.testing.assert_allclose(found[1], expected[1], atol=1e-6)


def test_all_rows_zero() -> None:
    g = knn_graph(torch.zeros(4, 3), 2, metric="cosine")
    assert g.ids.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]


def test_euclidean_graphs_have_no_power_weights() -> None:
    with pytest.raises(ValueError, match="needs similarities"):
        knn_graph(rows(), 2).affinity("power")
    store = LocalStore(StoreSpec(num_nodes=N, dim=4, num_classes=2, k=K, metric="euclidean"))
    store.put(torch.arange(N), rows())
    store.update_knn()
    with pytest.raises(ValueError, match="needs similarities"):
        store.refresh(lambda graph, state: graph.affinity("power") and None, round=0)
