"""Graphs that the solver tests share."""

from __future__ import annotations

import pytest
import torch
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.kernels.knn import (
    knn_self_join,
    prepare_rows,
    similarity_from_distance,
)
from labelmesh.graph_store.local_view import LocalGraphView


@pytest.fixture
def view() -> LocalGraphView:
    """A cosine graph of 120 random nodes with 8 neighbours each."""
    x = torch.randn(120, 5, generator=torch.Generator().manual_seed(0))
    ids, distances = knn_self_join(prepare_rows(x, "cosine"), 8)
    return LocalGraphView(ids, similarity_from_distance(distances), distances)


@pytest.fixture
def w(view: LocalGraphView) -> LocalAffinity:
    return view.affinity("power", gamma=3.0)


@pytest.fixture
def labels() -> torch.Tensor:
    """Two nodes of each of three classes."""
    given = torch.full((120,), -1)
    given[[5, 17, 40, 41, 90, 119]] = torch.tensor([0, 1, 2, 0, 1, 2])
    return given
