"""Edges of a batch's graph, and sums over them, against dense matrices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.graph_store.kernels.batch_graph import (
    BatchGraph,
    _connect_by_sorting,
    connect,
    edge_products,
    incident_sums,
    laplacian,
    reachable,
)
from torch import Tensor

F64 = torch.float64


def _lists(n: int, k: int, seed: int) -> Tensor:
    """Random distinct neighbours, never the row itself."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.stack([torch.randperm(n - 1, generator=rng)[:k] for _ in range(n)])
    return ids + (ids >= torch.arange(n)[:, None]).to(torch.int64)


def _graph(seed: int = 0) -> tuple[BatchGraph, Tensor, Tensor]:
    """A graph, weights of its edges, and the same as a matrix."""
    graph = connect(_lists(30, 4, seed))
    rng = torch.Generator().manual_seed(seed)
    weights = torch.rand(graph.first.shape, generator=rng, dtype=F64)
    w = torch.zeros(30, 30, dtype=F64)
    w[graph.first, graph.second] = w[graph.second, graph.first] = weights
    return graph, weights, w


@settings(deadline=None, max_examples=40)
@given(n=st.integers(2, 40), k=st.integers(1, 12), seed=st.integers(0, 1000))
def test_edges_are_the_union_of_the_lists_in_order(n: int, k: int, seed: int) -> None:
    ids = _lists(n, min(k, n - 1), seed)
    graph = connect(ids)
    joined = torch.zeros(n, n, dtype=torch.bool).scatter_(1, ids, True)
    joined |= joined.T.clone()
    expected = joined.triu().nonzero()
    assert torch.equal(torch.stack([graph.first, graph.second], dim=1), expected)
    assert torch.equal(torch.stack([graph.rows, graph.cols], dim=1), joined.nonzero())
    low, high = torch.minimum(graph.rows, graph.cols), torch.maximum(graph.rows, graph.cols)
    assert torch.equal(graph.first[graph.edges], low)
    assert torch.equal(graph.second[graph.edges], high)
    own = torch.arange(n)[:, None].expand_as(ids)
    assert torch.equal(graph.first[graph.listed], torch.minimum(own, ids))
    assert torch.equal(graph.second[graph.listed], torch.maximum(own, ids))


def test_sorting_gives_the_same_graph() -> None:
    ids = _lists(50, 6, 3)
    ours, sorted_ = connect(ids), _connect_by_sorting(ids)
    for name in ("first", "second", "offsets", "cols", "edges", "listed"):
        assert torch.equal(getattr(ours, name), getattr(sorted_, name))


def test_values_of_lists_arrive_at_their_edges() -> None:
    ids = _lists(20, 3, 0)
    graph = connect(ids)
    own = torch.arange(20)[:, None].expand_as(ids)
    values = graph.per_edge((own + ids).to(F64))
    assert torch.equal(values, (graph.first + graph.second).to(F64))


def test_incident_sums_are_row_sums() -> None:
    graph, weights, w = _graph()
    torch.testing.assert_close(incident_sums(graph, weights), w.sum(1))
    both = incident_sums(graph, torch.stack([weights, weights.square()], dim=1))
    torch.testing.assert_close(both, torch.stack([w.sum(1), w.square().sum(1)], dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_laplacian_is_degrees_minus_weights(dtype: torch.dtype) -> None:
    graph, weights, w = _graph()
    f = torch.randn(30, 5, generator=torch.Generator().manual_seed(1), dtype=dtype)
    dense = torch.diag(w.sum(1)) - w
    ours = laplacian(graph, weights[:, None], f)
    torch.testing.assert_close(ours, dense @ f.to(F64), rtol=1e-12, atol=1e-12)
    columns = weights[:, None] * torch.arange(1, 6, dtype=F64)
    ours = laplacian(graph, columns, f)
    expected = dense @ f.to(F64) * torch.arange(1, 6)
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-12)


def test_edge_products_are_products_of_differences() -> None:
    graph, _, _ = _graph()
    a, b = torch.randn(2, 30, 4, generator=torch.Generator().manual_seed(1), dtype=F64)
    i, j = graph.first, graph.second
    expected = ((a[i] - a[j]) * (b[i] - b[j])).sum(1)
    torch.testing.assert_close(edge_products(graph, a, b), expected)


def test_only_positive_weights_lead_on() -> None:
    # A path 0-1-2-3-4 whose edge 2-3 has no weight.
    graph = connect(torch.tensor([[1], [2], [3], [4], [3]]))
    weights = torch.tensor([1.0, 1.0, 0.0, 1.0], dtype=F64)
    start = torch.tensor([False, True, False, False, False])
    assert reachable(graph, weights, start).tolist() == [True, True, True, False, False]
    assert start.sum() == 1
