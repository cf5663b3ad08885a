"""All backends of the index give the same ids, order and distances."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.graph_store.index import TorchIndex, make_index
from labelmesh.graph_store.kernels.knn import Metric, knn_blocked

pytest.importorskip("faiss")


@settings(deadline=None, max_examples=40)
@given(
    num_rows=st.integers(1, 80),
    dim=st.integers(1, 8),
    k=st.integers(1, 40),
    levels=st.sampled_from([2, 4, 1000]),
    shift=st.sampled_from([0.0, 1e4]),
    metric=st.sampled_from(["euclidean", "inner_product"]),
    seed=st.integers(0, 1000),
)
def test_faiss_agrees_with_torch(
    num_rows: int, dim: int, k: int, levels: int, shift: float, metric: Metric, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, levels, (num_rows, dim), generator=generator) / 7 + shift
    queries = torch.cat([rows[:30], rows[:10] + 1])
    ids = torch.randperm(200, generator=generator)[:num_rows]
    query_ids = torch.cat([ids[:30], torch.full((rows[:10].shape[0],), -1)])
    expected = make_index("torch", rows, ids, metric).search(queries, k, query_ids)
    found = make_index("faiss", rows, ids, metric).search(queries, k, query_ids)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("backend", ["torch", "faiss"])
def test_index_equals_the_kernel(backend: str) -> None:
    rows = torch.randn(500, 12, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(500) * 3
    index = make_index(backend, rows, ids)  # type: ignore[arg-type]
    for part in (rows[:1], rows[100:140], rows[:0], rows[:3] * 1e25):
        found, expected = index.search(part, 9), knn_blocked(part, rows, 9, bank_ids=ids)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


def test_auto_is_torch() -> None:
    rows = torch.zeros(3, 2)
    assert isinstance(make_index("auto", rows, torch.arange(3)), TorchIndex)
