"""Density paths by hand and against an obvious implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from labelmesh.graph_store.knn_graph import knn_graph
from labelmesh.graph_store.local_view import LocalGraphView
from labelmesh.graph_store.solvers import density_paths
from labelmesh.graph_store.solvers.density_paths import density_order
from torch import Tensor


def graph(neighbors: list[list[int]], distances: list[list[float]]) -> LocalGraphView:
    d = torch.tensor(distances)
    return LocalGraphView(torch.tensor(neighbors), 1 - d.square() / 2, d)


def forest_graph(parent: list[int]) -> LocalGraphView:
    """Every node lists its parent alone, at distance 1."""
    return graph([[p] for p in parent], [[1.0 if p >= 0 else torch.inf] for p in parent])


def obvious(view: LocalGraphView, labels: Tensor, density: Tensor, sigma: float) -> list[list[int]]:
    """dag.md, items 3 and 4, with one path after the other."""
    n = len(labels)
    rank = {v: (float(density[v]), -v) for v in range(n)}
    parent = [-1] * n
    for v in range(n):
        for w, d in zip(view.neighbor_ids[v].tolist(), view.distances[v].tolist()):
            if w >= 0 and rank[w] > rank[v]:
                parent[v] = w if d <= sigma else -1
                break
    paths = []
    for v in range(n):
        path = [v]
        while parent[path[-1]] >= 0:
            path.append(parent[path[-1]])
        paths.append(path)
    given = labels.tolist()
    result, source = list(given), [0 if label >= 0 else 3 for label in given]
    origin = [v if given[v] >= 0 else -1 for v in range(n)]
    for start in sorted((v for v in range(n) if given[v] >= 0), key=rank.__getitem__, reverse=True):
        for v in paths[start]:
            if source[v] == 3:
                result[v], source[v], origin[v] = given[start], 1, start
    for v in range(n):
        on_path = [w for w in paths[v] if given[w] >= 0]
        if source[v] == 3 and on_path:
            densest = max(on_path, key=rank.__getitem__)
            result[v], source[v], origin[v] = given[densest], 2, densest
    roots, lengths = [path[-1] for path in paths], [len(path) for path in paths]
    return [result, source, origin, parent, roots, lengths]


def columns(found: object) -> list[list[int]]:
    names = ("labels", "source", "origin", "parent", "root", "path_length")
    return [getattr(found, name).tolist() for name in names]


def test_six_nodes_by_hand() -> None:
    """Paths 0 > 1 > 2 > 5 and 3 > 2, and 4 > 5; denser from 0 to 5.

    Labeled: 0 (class 7), 3 (class 8) and 4 (class 9). Node 3 is denser than 0, so 2 and 5 get
    class 8 from below by LP-L; 5 lies above 4 too, which is denser still: class 9. Node 1 gets 7.
    """
    view = graph(
        [[1, 2], [0, 2], [3, 5], [2, 0], [5, 0], [4, 2]],
        [[1.0, 2.0], [1.0, 1.5], [0.5, 1.0], [0.5, 3.0], [1.0, 3.0], [1.0, 1.0]],
    )
    density = torch.tensor([0.1, 0.2, 0.35, 0.3, 0.4, 0.5])
    found = density_paths(view, torch.tensor([7, -1, -1, 8, 9, -1]), sigma=2.0, density=density)
    assert found.parent.tolist() == [1, 2, 5, 2, 5, -1]
    assert found.labels.tolist() == [7, 7, 8, 8, 9, 9]
    assert found.source.tolist() == [0, 1, 1, 0, 0, 1]
    assert found.origin.tolist() == [0, 0, 3, 3, 4, 4]
    assert found.path_length.tolist() == [4, 3, 2, 3, 2, 1]
    assert found.root.tolist() == [5] * 6


def test_lpl_comes_before_lplu() -> None:
    """Node 1 lies on 0's path and has the labeled 2 above it: the label from below wins."""
    density = torch.tensor([0.1, 0.2, 0.3, 0.05])
    view = forest_graph([1, 2, -1, 1])
    found = density_paths(view, torch.tensor([4, -1, 6, -1]), sigma=1.0, density=density)
    assert found.labels.tolist() == [4, 4, 6, 6]
    assert found.source.tolist() == [0, 1, 0, 2]


def test_densest_labeled_ancestor_wins() -> None:
    density = torch.tensor([0.1, 0.2, 0.3, 0.4])
    found = density_paths(
        forest_graph([1, 2, 3, -1]), torch.tensor([-1, 5, 6, -1]), sigma=1.0, density=density
    )
    assert found.labels.tolist() == [6, 5, 6, 6]


def test_step_longer_than_sigma_ends_the_path() -> None:
    view = graph([[1, 2], [0, 2], [1, 0]], [[1.0, 1.5], [1.0, 1.2], [1.2, 1.5]])
    density = torch.tensor([0.1, 0.0, 0.2])
    labels = torch.tensor([-1, -1, 0])
    assert density_paths(view, labels, sigma=1.2, density=density).parent.tolist() == [-1, 0, -1]
    assert density_paths(view, labels, sigma=1.5, density=density).parent.tolist() == [2, 0, -1]


def test_equal_densities_are_ordered_by_lower_id() -> None:
    view = forest_graph([1, 2, 0])
    found = density_paths(view, torch.tensor([3, -1, -1]), sigma=1.0, density=torch.zeros(3))
    assert found.parent.tolist() == [-1, -1, 0]
    assert found.labels.tolist() == [3, -1, 3]
    assert found.source.tolist() == [0, 3, 2]


@pytest.mark.parametrize("seed", range(200))
def test_random_graphs_equal_the_obvious_implementation(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, k = int(torch.randint(2, 60, (), generator=generator)), 4
    cols = torch.stack([torch.randperm(n, generator=generator) for _ in range(n)])[:, :k]
    cols = torch.where(cols == torch.arange(n)[:, None], -1, cols)
    d = torch.rand(cols.shape, generator=generator)
    d = torch.where(cols < 0, torch.inf, d).sort(1)
    view = LocalGraphView(cols.gather(1, d.indices), 1 - d.values.square() / 2, d.values)
    # Few levels, so that densities are often equal.
    density = torch.randint(-3, 4, (n,), generator=generator) / 8
    labels = torch.randint(-6, 3, (n,), generator=generator).clamp(min=-1)
    found = density_paths(view, labels, sigma=0.8, density=density)
    assert columns(found) == obvious(view, labels, density, 0.8)


@pytest.mark.parametrize("length", [1, 2, 3, 64, 1000])
def test_long_chains(length: int) -> None:
    parent = [*range(1, length), -1]
    labels = torch.full((length,), -1)
    labels[length // 2] = 2
    density = torch.arange(length) / length
    found = density_paths(forest_graph(parent), labels, sigma=1.0, density=density)
    assert found.labels.tolist() == [2] * length
    assert found.path_length.tolist() == list(range(length, 0, -1))
    assert found.root.tolist() == [length - 1] * length


def test_paths_of_a_real_graph() -> None:
    x = np.random.default_rng(0).normal(size=(150, 4))
    g = knn_graph(x, 6, metric="cosine")
    labels = np.full(150, -1)
    labels[[3, 70, 149]] = [0, 1, 2]
    found = density_paths(g, labels, sigma=0.5)
    assert isinstance(found.labels, np.ndarray)
    density = torch.from_numpy(found.density)
    np.testing.assert_allclose(found.density, g.distances.mean(1), rtol=1e-5)
    assert columns(found) == obvious(g.as_view(), torch.from_numpy(labels), density, 0.5)


def test_order_is_that_of_densities_then_lower_ids() -> None:
    density = torch.tensor([0.0, -0.0, 1.5, -1.5, -2.5, 3e38, -3e38, 1e-40, -1e-40])
    ids = torch.arange(9)
    order = density_order(density, ids)
    expected = sorted(range(9), key=lambda i: (float(density[i]) + 0.0, -i))
    assert order.argsort().tolist() == expected
    assert len(order.unique()) == 9


def test_bad_input_is_named() -> None:
    view, labels = forest_graph([1, -1]), torch.tensor([0, -1])
    with pytest.raises(ValueError, match="sigma must be >= 0, got -1"):
        density_paths(view, labels, sigma=-1.0)
    with pytest.raises(ValueError, match="density of node 1 is NaN"):
        density_paths(view, labels, sigma=1.0, density=torch.tensor([0.0, torch.nan]))
    with pytest.raises(ValueError, match="got 3 labels for 2 nodes"):
        density_paths(view, torch.tensor([0, 0, 0]), sigma=1.0)
    with pytest.raises(ValueError, match="has no distances"):
        density_paths(knn_graph(np.eye(3), 1, metric="inner_product"), np.zeros(3, int), sigma=1.0)
