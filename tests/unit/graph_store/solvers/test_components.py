"""Components and aggregates of graphs."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.solvers.aggregation import aggregates, grow_from_seeds, num_aggregates
from labelmesh.graph_store.solvers.components import components, sum_by_component


def graph(num_nodes: int, num_edges: int, seed: int) -> LocalAffinity:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, num_nodes, (2, num_edges))
    keep = a != b
    w = scipy.sparse.coo_array(
        (rng.random(keep.sum()) + 0.1, (a[keep], b[keep])), shape=(num_nodes, num_nodes)
    ).tocsr()
    return LocalAffinity.from_scipy(w.maximum(w.T))


def path(num_nodes: int) -> LocalAffinity:
    ones = np.ones(num_nodes - 1)
    return LocalAffinity.from_scipy(scipy.sparse.diags_array([ones, ones], offsets=[-1, 1]))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.integers(0, 80), st.integers(0, 1000))
def test_components_are_those_of_scipy(num_nodes: int, num_edges: int, seed: int) -> None:
    w = graph(num_nodes, num_edges, seed)
    _, expected = scipy.sparse.csgraph.connected_components(w.to_scipy(), directed=False)
    found = components(w)
    for part in range(expected.max() + 1):
        members = np.flatnonzero(expected == part)
        assert (found[members] == members.min()).all()


def test_components_of_a_path_take_logarithmically_many_rounds() -> None:
    w = path(5000)
    rounds = []
    extend = w.extend
    w.extend = lambda f: rounds.append(1) or extend(f)  # type: ignore[method-assign,func-returns-value]
    assert (components(w) == 0).all()
    assert len(rounds) <= 20


def test_sums_by_component() -> None:
    block = np.array([[0.0, 1.0], [1.0, 0.0]])
    w = LocalAffinity.from_scipy(scipy.sparse.block_diag([block, [[0.0]], block], format="csr"))
    x = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]])
    found = sum_by_component(w, components(w), x)
    assert found[:, 0].tolist() == [3.0, 3.0, 3.0, 9.0, 9.0]


@pytest.mark.parametrize("seed", range(5))
def test_groups_grow_connected_and_hold_their_seeds(seed: int) -> None:
    w = graph(300, 700, seed)
    group = grow_from_seeds(w, 20)
    assert (group[torch.arange(20) * 300 // 20] == torch.arange(20)).all()
    matrix = w.to_scipy()
    for g in range(20):
        members = np.flatnonzero(group.numpy() == g)
        inside = matrix[members][:, members]
        assert scipy.sparse.csgraph.connected_components(inside, directed=False)[0] == 1
    # Without a group are only the nodes of components without a seed.
    component = components(w)
    seeded = torch.isin(component, component[group >= 0])
    assert torch.equal(seeded, group >= 0)
    assert torch.equal(aggregates(w, 20) >= 0, group >= 0)


def test_a_node_joins_its_strongest_neighbour() -> None:
    w = np.zeros((4, 4))
    w[0, 1] = w[1, 2] = w[2, 3] = 1.0
    w[1, 2] = 2.0
    affinity = LocalAffinity.from_scipy(scipy.sparse.csr_array(w + w.T))
    # Seeds are the nodes 0 and 2; node 1 leans to 2, node 3 knows only 2.
    assert grow_from_seeds(affinity, 2).tolist() == [0, 1, 1, 1]


def test_votes_move_borders_to_those_of_clusters() -> None:
    # Two cliques of 10, their nodes taking turns; one edge between them is the strongest of all,
    # so that growing from the seeds 0 and 1 may cross it.
    rng = np.random.default_rng(0)
    side = np.arange(20) % 2
    w = np.where(side[:, None] == side, 0.5 + rng.random((20, 20)), 0.0)
    w[4, 7] = w[7, 4] = 9.0
    w = np.triu(w, 1)
    affinity = LocalAffinity.from_scipy(scipy.sparse.csr_array(w + w.T))
    group = aggregates(affinity, 10)
    for half in (0, 1):
        assert len(group[side == half].unique()) == 1


def test_small_graphs_have_no_coarse_level() -> None:
    assert num_aggregates(1999) == 0
    assert num_aggregates(10_000) == 200
    assert num_aggregates(10**9) == 400
