"""Neighbourhoods, level by level."""

from __future__ import annotations

import torch
from labelmesh.graph_store.neighborhood import build_neighborhood
from torch import Tensor

# A ring 0 -> 1 -> ... -> 5 -> 0 in which node 3 has no neighbour.
NEXT = torch.tensor([[1], [2], [3], [-1], [5], [0]])


def fetch(node_ids: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
    columns = {
        "features": torch.arange(6.0)[:, None] * 10,
        "density": torch.arange(6.0),
        "neighbor_ids": NEXT,
    }
    assert node_ids.tolist() == sorted(set(node_ids.tolist()))
    return {name: columns[name][node_ids] for name in names}


def test_levels_of_a_ring_worked_by_hand() -> None:
    first, second, third = build_neighborhood(NEXT[[5, 1, 5, 2]], 3, 6, fetch).hops
    assert first.node_ids.tolist() == [0, 2, 3]
    assert first.index.tolist() == [[0], [1], [0], [2]]
    assert first.features.tolist() == [[0], [20], [30]]
    assert second.node_ids.tolist() == [1, 3]
    assert second.index.tolist() == [[0], [1], [-1]]
    assert second.density.tolist() == [1, 3]
    assert third.node_ids.tolist() == [2]
    assert third.index.tolist() == [[0], [-1]]


def test_nodes_without_neighbours_have_empty_levels() -> None:
    first, second = build_neighborhood(NEXT[[3]], 2, 6, fetch).hops
    assert first.node_ids.shape == (0,)
    assert first.index.tolist() == [[-1]]
    assert first.features.shape == (0, 1)
    assert second.index.shape == (0, 1)
