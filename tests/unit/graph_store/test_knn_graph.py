"""kNN graphs of arrays: kinds, metrics, ties, and errors."""

from __future__ import annotations

import doctest
import importlib

import numpy as np
import pytest
import torch
from labelmesh.graph_store.index import Backend
from labelmesh.graph_store.kernels.knn import Metric
from labelmesh.graph_store.knn_graph import knn_graph
from sklearn.neighbors import NearestNeighbors


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape)


@pytest.mark.parametrize("backend", ["torch", "faiss", "auto"])
def test_euclidean_graph_equals_scikit_learn(backend: Backend) -> None:
    x = normal(400, 6).astype(np.float32)
    g = knn_graph(x, 7, backend=backend)
    distances, ids = NearestNeighbors(n_neighbors=7).fit(x.astype(float)).kneighbors()
    assert (g.ids == ids).all()
    np.testing.assert_allclose(g.distances, distances, rtol=1e-6)


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_similarities_descend(metric: Metric) -> None:
    x = normal(200, 6)
    g = knn_graph(x, 5, metric=metric)
    rows = x / np.linalg.norm(x, axis=1, keepdims=True) if metric == "cosine" else x
    similarity = rows @ rows.T
    np.fill_diagonal(similarity, -np.inf)
    assert (g.ids == np.argsort(-similarity, axis=1)[:, :5]).all()
    found = np.take_along_axis(similarity, g.ids, 1)
    np.testing.assert_allclose(g.distances, found, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_copies_are_neighbors_and_ties_go_to_lower_ids(backend: Backend) -> None:
    x = np.array([[0.0], [1.0], [0.0], [-1.0], [1.0]])
    g = knn_graph(x, 4, backend=backend)
    assert g.ids.tolist() == [
        [2, 1, 3, 4],
        [4, 0, 2, 3],
        [0, 1, 3, 4],
        [0, 2, 1, 4],
        [1, 0, 2, 3],
    ]


def test_results_are_of_the_kind_that_went_in() -> None:
    x = normal(30, 3)
    from_numpy, from_torch = knn_graph(x, 4), knn_graph(torch.from_numpy(x), 4)
    assert isinstance(from_numpy.ids, np.ndarray)
    assert from_numpy.ids.dtype == np.int64
    assert from_numpy.distances.dtype == np.float32
    assert isinstance(from_torch.ids, torch.Tensor)
    assert (from_torch.ids.numpy() == from_numpy.ids).all()
    assert (from_torch.distances.numpy() == from_numpy.distances).all()


def test_integers_and_views_of_arrays_are_accepted() -> None:
    x = np.arange(40).reshape(10, 4)
    assert (knn_graph(x, 2).ids == knn_graph(x.astype(float), 2).ids).all()
    assert knn_graph(x[::-1, ::2], 2).ids.shape == (10, 2)


def test_gradients_are_left_behind() -> None:
    x = torch.from_numpy(normal(10, 2)).requires_grad_()
    assert not knn_graph(x, 3).distances.requires_grad


def test_permuting_rows_permutes_the_graph() -> None:
    x = normal(150, 4)
    order = np.random.default_rng(1).permutation(150)
    g, permuted = knn_graph(x, 6), knn_graph(x[order], 6)
    assert (order[permuted.ids] == g.ids[order]).all()
    assert (permuted.distances == g.distances[order]).all()


def test_affinities_of_the_graph() -> None:
    x = normal(60, 3)
    g = knn_graph(x, 5)
    d = np.linalg.norm(x[:, None] - x[None], axis=2)
    listed = np.zeros((60, 60), bool)
    np.put_along_axis(listed, g.ids, True, 1)
    eps = np.take_along_axis(d, g.ids, 1)[:, -1]
    expected = np.where(listed | listed.T, np.exp(-4 * d**2 / np.outer(eps, eps)), 0)
    found = g.affinity("self_tuning").to_scipy().toarray()
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    cosine = knn_graph(x, 5, metric="cosine").affinity("power", gamma=3.0).to_scipy()
    unit = knn_graph(x / np.linalg.norm(x, axis=1, keepdims=True), 5, metric="inner_product")
    product = unit.affinity("power", gamma=3.0).to_scipy()
    assert abs(cosine - product).max() < 1e-6


def test_example_of_the_documentation_runs() -> None:
    module = importlib.import_module("labelmesh.graph_store.knn_graph")
    failed, tried = doctest.testmod(module)
    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_rows_that_are_no_numbers_are_named(value: float) -> None:
    x = normal(20, 3)
    x[[4, 11], 1] = value
    with pytest.raises(ValueError, match=r"2 rows contain NaN or infinity in float32: \[4, 11\]"):
        knn_graph(x, 3)


@pytest.mark.parametrize("k", [0, 10, 11, -1])
def test_k_must_leave_the_node_out(k: int) -> None:
    with pytest.raises(ValueError, match=f"k must be between 1 and 9, .*got {k}"):
        knn_graph(normal(10, 2), k)


def test_shapes_and_kinds_of_x_are_checked() -> None:
    with pytest.raises(ValueError, match=r"shape \(n, d\), got torch.float64 of shape \(10,\)"):
        knn_graph(normal(10), 2)
    with pytest.raises(ValueError, match=r"got torch\.complex128"):
        knn_graph(normal(4, 2) + 1j, 2)


def test_inner_product_graphs_have_no_self_tuning_weights() -> None:
    with pytest.raises(ValueError, match="has no distances"):
        knn_graph(normal(10, 2), 2, metric="inner_product").affinity("self_tuning")
