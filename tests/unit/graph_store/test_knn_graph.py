"""kNN graphs of arrays: kinds, metrics, ties, and errors."""

from __future__ import annotations

import doctest
import importlib
from typing import Any

import numpy as np
import pytest
import torch
from labelmesh.graph_store.index import Backend
from labelmesh.graph_store.kernels.knn import Metric
from labelmesh.graph_store.knn_graph import KnnGraph, knn_graph
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


# Updates


def assert_same_graph(found: KnnGraph, wanted: KnnGraph) -> None:
    assert (np.asarray(found.ids) == np.asarray(wanted.ids)).all()
    assert (np.asarray(found.distances) == np.asarray(wanted.distances)).all()


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "inner_product"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_updated_graph_is_that_of_the_moved_rows(metric: Metric, dtype: type) -> None:
    rng, x = np.random.default_rng(1), normal(150, 6).astype(dtype)
    g = knn_graph(x, 5, metric=metric)
    for size in (0.0, 0.01, 1.0):
        before = g.ids.copy()
        x = (x + size * rng.normal(size=x.shape) * (rng.random((150, 1)) < 0.1)).astype(dtype)
        g, report = g.update(x)
        assert_same_graph(g, knn_graph(x, 5, metric=metric))
        assert report.changed == (g.ids != before).any(1).sum()
        assert report.exact
        assert report.rebuilt == (metric == "inner_product")
        if metric != "inner_product":
            assert report.searched < 75


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_rows_may_be_moved_in_place(kind: str) -> None:
    """A graph once took the caller's array for the rows before and saw nothing move."""
    x = normal(100, 4).astype(np.float32)
    rows: Any = x if kind == "numpy" else torch.from_numpy(x)
    g = knn_graph(rows, 5)
    for _ in range(3):
        x[:20] += 0.5
        g, report = g.update(rows)
        assert report.changed > 0
        assert_same_graph(g, knn_graph(x, 5))


def test_rows_without_direction_come_and_go() -> None:
    x = normal(80, 4)
    x[[3, 9]] = 0
    g = knn_graph(x, 5, metric="cosine")
    for zeros in ([3, 40, 41], [], list(range(70)), list(range(80)), [1]):
        y = normal(80, 4) + 0.01
        y[zeros] = 0
        g, _ = g.update(y)
        assert_same_graph(g, knn_graph(y, 5, metric="cosine"))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_nodes_are_added_and_removed(metric: Metric) -> None:
    x = normal(90, 5)
    g = knn_graph(x[:60], 4, metric=metric)
    g, report = g.update(x[:80])
    assert_same_graph(g, knn_graph(x[:80], 4, metric=metric))
    assert (report.searched, report.changed >= 20) == (20, True)
    x[[7, 11]] = np.nan  # nobody looks at them
    g, report = g.update(x, removed=np.array([11, 7, 7]))
    kept = np.setdiff1d(np.arange(90), [7, 11])
    wanted = knn_graph(x[kept], 4, metric=metric)
    assert (g.ids[kept] == kept[wanted.ids]).all()
    assert (g.distances[kept] == wanted.distances).all()
    assert (g.ids[[7, 11]] == -1).all()
    assert (g.distances[[7, 11]] == (np.inf if metric == "euclidean" else 0)).all()
    g, report = g.update(x, removed=np.array([30]))  # those that are gone stay gone
    assert (g.ids[[7, 11, 30]] == -1).all()
    assert not np.isin(g.ids, [7, 11, 30]).any()
    assert report.certified == 87


def test_an_older_graph_can_be_updated_too() -> None:
    x, y, z = normal(60, 3), normal(60, 3) + 0.01 * normal(61, 3)[1:], 2 * normal(61, 3)[1:]
    old = knn_graph(x, 4)
    shown = old.ids.copy()
    new, report = old.update(y)
    assert not report.rebuilt
    other, report = old.update(z)
    assert report.rebuilt
    assert (old.ids == shown).all()
    newest, report = new.update(z)
    for g in (other, newest):
        assert_same_graph(g, knn_graph(z, 4))


def test_nothing_is_kept_where_none_is_wanted() -> None:
    x = normal(60, 3)
    for options in ({"slack": 0}, {"backend": "faiss"}):
        g, report = knn_graph(x, 4, **options).update(x + 1e-5)  # type: ignore[arg-type]
        assert (report.rebuilt, report.searched) == (True, 60)
        assert_same_graph(g, knn_graph(x + 1e-5, 4))


def test_tolerance_of_an_update() -> None:
    x = normal(300, 6)
    g = knn_graph(x, 5, slack=8)
    y = x + 0.01 * normal(301, 6)[1:]
    found, report = g.update(y, eta=0.3)
    true = knn_graph(y, 5)
    assert (found.distances <= report.bound * true.distances * (1 + 1e-6)).all()
    assert 1 <= report.bound <= 1.3
    exact, report = found.update(y)
    assert_same_graph(exact, true)
    assert report.exact


def test_refused_updates_leave_the_graph_as_it_was() -> None:
    x = normal(50, 3)
    bad = x.copy()
    bad[[4, 17], 1] = np.nan
    g = knn_graph(x, 4)
    refused: list[tuple[Any, dict[str, Any], str]] = [
        (bad, {}, r"2 rows contain NaN or infinity in float32: \[4, 17\]"),
        (bad, {"removed": np.array([4])}, r"1 rows contain NaN or infinity in float32: \[17\]"),
        (x[:49], {}, r"x_new must have the graph's 50 rows .* of width 3, got shape \(49, 3\)"),
        (x[:, :2], {}, r"got shape \(50, 2\); name rows that are gone in removed"),
        (x[0], {}, r"got shape \(3,\)"),
        (x, {"removed": np.array([2, 50, -1])}, r"removed has ids \[50, -1\] .* not in 0..49"),
        (x, {"removed": np.zeros(50, bool)}, "removed must be integer ids of shape"),
        (x, {"removed": np.arange(46)}, "k must be between 1 and 3"),
        (x, {"eta": -0.1}, "eta must be >= 0, got -0.1"),
        (x, {"eta": np.nan}, "eta must be >= 0, got nan"),
    ]
    for rows, options, message in refused:
        with pytest.raises(ValueError, match=message):
            g.update(rows, **options)
    report = g.update(x)[1]
    assert (report.rebuilt, report.searched, report.distances) == (False, 0, 0)
    for slack in (1, 4, -3):
        with pytest.raises(ValueError, match=r"slack must be 0 or"):
            knn_graph(x, 4, slack=slack)
