"""Nearest labels along the edges against SciPy's shortest paths."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.solvers import nearest_labeled
from labelmesh.graph_store.solvers.nearest_labeled import labeled_distances
from scipy.sparse.csgraph import dijkstra
from torch import Tensor


def path_graph(weights: list[float]) -> LocalAffinity:
    w = np.array(weights)
    return LocalAffinity.from_scipy(scipy.sparse.diags_array([w, w], offsets=[-1, 1]))


def shortest(w: LocalAffinity, sources: np.ndarray) -> np.ndarray:
    lengths = w.to_scipy()
    lengths.data = lengths.data.max() / lengths.data
    return np.asarray(dijkstra(lengths, indices=sources))


def test_labels_and_distances_are_those_of_shortest_paths(w: LocalAffinity, labels: Tensor) -> None:
    sources = np.flatnonzero(labels >= 0)
    all_paths = shortest(w, sources)
    distances, lengths = labeled_distances(w, labels >= 0)
    np.testing.assert_allclose(distances, all_paths.min(0), rtol=1e-12)
    assert lengths.min() == 1
    u = nearest_labeled(w, labels)
    assert u.argmax(1).tolist() == labels[sources][all_paths.argmin(0)].tolist()
    assert (u.sum(1) == 1).all()


def test_long_path_is_cut_at_its_weakest_side() -> None:
    """Lengths 1, 1, 4, 1, 1, ...: node 3 lies beyond the weak edge from the first label."""
    labels = np.full(60, -1)
    labels[[0, 59]] = [1, 0]
    u = nearest_labeled(path_graph([1.0, 1.0, 0.01] + [1.0] * 56), labels)
    assert isinstance(u, np.ndarray)
    assert u.argmax(1).tolist() == [1] * 3 + [0] * 57


def test_ties_go_to_the_lower_class() -> None:
    u = nearest_labeled(path_graph([1.0] * 4), torch.tensor([2, -1, -1, -1, 1]))
    assert u.argmax(1).tolist() == [2, 2, 1, 1, 1]


def test_permuted_nodes_give_permuted_labels(w: LocalAffinity, labels: Tensor) -> None:
    order = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    permuted = LocalAffinity.from_scipy(w.to_scipy()[order.numpy()][:, order.numpy()])
    assert torch.equal(nearest_labeled(permuted, labels[order]), nearest_labeled(w, labels)[order])


def test_scaling_weights_changes_nothing(w: LocalAffinity, labels: Tensor) -> None:
    scaled = LocalAffinity.from_scipy(w.to_scipy() * 1024)
    assert torch.equal(nearest_labeled(scaled, labels), nearest_labeled(w, labels))


def test_unreached_and_isolated_nodes_have_zero_rows() -> None:
    block = np.array([[0.0, 1.0], [1.0, 0.0]])
    w = LocalAffinity.from_scipy(scipy.sparse.block_diag([block, block, [[0.0]]], format="csr"))
    u = nearest_labeled(w, torch.tensor([1, -1, -1, -1, -1]), num_classes=3)
    assert u.tolist() == [[0, 1, 0]] * 2 + [[0, 0, 0]] * 3


def test_graph_without_edges() -> None:
    w = LocalAffinity.from_scipy(scipy.sparse.csr_array((3, 3)))
    assert nearest_labeled(w, torch.tensor([1, -1, 0])).tolist() == [[0, 1], [0, 0], [1, 0]]


def test_no_labels_are_refused(w: LocalAffinity) -> None:
    with pytest.raises(ValueError, match="no node is labeled"):
        nearest_labeled(w, torch.full((120,), -1))
