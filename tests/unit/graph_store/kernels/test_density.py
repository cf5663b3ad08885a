"""Density on graphs made by hand."""

from __future__ import annotations

import torch
from labelmesh.graph_store.kernels.density import density


def test_density_is_the_mean_over_existing_neighbors() -> None:
    neighbors = torch.tensor([[1, 2], [0, -1], [-1, -1]])
    similarity = torch.tensor([[0.5, 0.25], [0.5, 0.0], [0.0, 0.0]])
    assert density(similarity, neighbors).tolist() == [0.375, 0.5, 0.0]


def test_values_beside_missing_neighbors_do_not_count() -> None:
    assert density(torch.tensor([[0.5, 9.0]]), torch.tensor([[3, -1]])).tolist() == [0.5]


def test_density_of_a_node_does_not_depend_on_the_others() -> None:
    similarity = torch.rand(100, 15, generator=torch.Generator().manual_seed(0))
    neighbors = torch.zeros(100, 15, dtype=torch.int64)
    alone = [density(similarity[i : i + 1], neighbors[i : i + 1]) for i in range(100)]
    assert torch.equal(torch.cat(alone), density(similarity, neighbors))
