"""The search in torch operations: that of the compiled loops, in any precision and budget."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.graph_store.kernels import knn_device, offers
from labelmesh.graph_store.kernels.knn import (
    Metric,
    knn_blocked,
    knn_self_join,
    make_bank,
    make_search,
    normalize_rows,
)
from labelmesh.graph_store.kernels.knn_cpu import Found, Search
from labelmesh.graph_store.kernels.rounding import PRECISIONS, Precision
from torch import Tensor

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "BLOCK", 48)
    monkeypatch.setattr(offers, "LEAST_HITS", 150)
    monkeypatch.setattr(offers, "HITS_PER_ROW", 1)
    monkeypatch.setattr(offers, "MERGED_ROWS", 7)
    monkeypatch.setattr(knn_device, "BANK_BLOCK", 90)
    monkeypatch.setattr(knn_device, "QUERIES", 110)
    monkeypatch.setattr(knn_device, "PAIR_NUMBERS", 3000)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(1)).float()


ROWS: dict[str, Callable[[], Tensor]] = {
    "random": lambda: randn(240, 16),
    "unit": lambda: normalize_rows(randn(240, 40)),
    "grid with ties": lambda: integers(3, 240, 3),
    "one dimension": lambda: integers(60, 240, 1),
    "duplicates": lambda: randn(30, 7).repeat(8, 1),
    "all the same": lambda: torch.ones(150, 4),
    "far from the origin": lambda: 1e5 + randn(240, 5),
    "huge": lambda: 1e30 * randn(240, 5),
    "tiny": lambda: 1e-30 * randn(240, 5),
    "one outlier": lambda: torch.cat([randn(239, 5), torch.full((1, 5), 1e9)]),
    "tight clusters": lambda: normalize_rows(randn(5, 9).repeat(48, 1) + 1e-4 * randn(240, 9)),
    "coming nearer": lambda: torch.linspace(9, 1, 240)[:, None] ** 2 * torch.ones(240, 3),
    "zeros": lambda: torch.zeros(50, 3),
    "one row": lambda: randn(1, 3),
}


def self_task(rows: Tensor, k: int, metric: Metric = "euclidean") -> Search:
    own = torch.arange(rows.shape[0])
    return make_search(make_bank(rows, own, metric), rows, k, own)


def assert_same(found: Found, expected: Found) -> None:
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("metric", ["euclidean", "inner_product"])
@pytest.mark.parametrize("name", ROWS)
def test_any_precision_finds_what_the_compiled_search_finds(
    name: str, metric: Metric, precision: Precision
) -> None:
    rows = ROWS[name]()
    expected = knn_self_join(rows, 6, metric=metric)
    task = self_task(rows, 6, metric)
    assert_same(knn_device.self_join(task, precision=precision), expected)
    assert_same(knn_device.search(task, precision=precision), expected)


@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
@pytest.mark.parametrize("budget", [700, 5000, 10**6])
def test_streamed_rows_give_the_same(precision: Precision, budget: int) -> None:
    rows = ROWS["random"]()
    task = self_task(rows, 6)
    expected = knn_self_join(rows, 6)
    options = {"precision": precision, "budget": budget, "device": CPU}
    assert_same(knn_device.self_join(task, **options), expected)
    assert_same(knn_device.search(task, **options), expected)


def test_every_pair_of_rows_is_multiplied_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = torch.zeros(240, 240, dtype=torch.int64)
    block_keys = offers.block_keys

    def counted(a: offers.Framed, b: offers.Framed) -> Tensor:
        seen[a.ids[:, None].long(), b.ids.long()] += 1
        return block_keys(a, b)

    monkeypatch.setattr("labelmesh.graph_store.kernels.lists_device.block_keys", counted)
    for budget in (None, 2000):
        seen.zero_()
        knn_device.self_join(self_task(ROWS["random"](), 6), budget=budget)
        both = seen + seen.T
        assert int(both[~torch.eye(240, dtype=torch.bool)].max()) <= 2
        apart = (torch.arange(240)[:, None] // 48) != (torch.arange(240) // 48)
        if budget is None:
            assert torch.equal(both[apart], torch.ones_like(both[apart]))


@settings(deadline=None, max_examples=60)
@given(
    num_rows=st.integers(0, 60),
    num_queries=st.integers(0, 20),
    dim=st.integers(1, 9),
    k=st.integers(1, 70),
    levels=st.integers(1, 4),
    seed=st.integers(0, 10_000),
    precision=st.sampled_from(PRECISIONS),
)
def test_small_searches_with_ties(
    num_rows: int,
    num_queries: int,
    dim: int,
    k: int,
    levels: int,
    seed: int,
    precision: Precision,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    bank = torch.randint(0, levels, (num_rows, dim), generator=generator).float()
    queries = torch.randint(0, levels, (num_queries, dim), generator=generator).float()
    ids = torch.randperm(100, generator=generator)[:num_rows]
    query_ids = torch.randint(0, 100, (num_queries,), generator=generator)
    task = make_search(make_bank(bank, ids, "euclidean"), queries, k, query_ids)
    expected = knn_blocked(queries, bank, k, query_ids=query_ids, bank_ids=ids)
    assert_same(knn_device.search(task, precision=precision), expected)


def test_queries_far_larger_than_the_bank() -> None:
    bank, queries = randn(50, 4), torch.full((2, 4), 1e30)
    task = make_search(make_bank(bank, torch.arange(50), "euclidean"), queries, 3, None)
    for precision in PRECISIONS:
        assert_same(knn_device.search(task, precision=precision), knn_blocked(queries, bank, 3))


def test_coarse_rows_are_searched_again_in_float32() -> None:
    """Clusters far tighter than int8 resolves: nothing is certain, and nothing is wrong."""
    rows = randn(3, 12).repeat(80, 1) + 1e-3 * randn(240, 12, seed=1)
    assert_same(knn_device.self_join(self_task(rows, 5), precision="int8"), knn_self_join(rows, 5))
