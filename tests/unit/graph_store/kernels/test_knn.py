"""Exact kNN against a brute force over canonical distances: ids, order and distances."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.graph_store.kernels import knn_cpu
from labelmesh.graph_store.kernels.knn import (
    Found,
    Metric,
    canonical_distances,
    knn_blocked,
    knn_self_join,
    merge_topk,
    normalize_rows,
)
from torch import Tensor


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(1)).float()


def brute_force(
    queries: Tensor, bank: Tensor, k: int, query_ids: Tensor, ids: Tensor, metric: Metric
) -> Found:
    """All pairs, then Python's sort by (distance, id)."""
    shape = (queries.shape[0], *bank.shape)
    pairs = canonical_distances(queries[:, None].expand(shape), bank[None].expand(shape), metric)
    found_ids, found = [], []
    for own, row in zip(query_ids.tolist(), pairs.tolist()):
        best = sorted((d, i) for d, i in zip(row, ids.tolist()) if i != own)[:k]
        missing = k - len(best)
        found_ids.append([i for _, i in best] + [-1] * missing)
        found.append([d for d, _ in best] + [torch.inf] * missing)
    distances = torch.tensor(found, dtype=torch.float64)
    return torch.tensor(found_ids, dtype=torch.int64).reshape(-1, k), distances.reshape(-1, k)


def assert_same(found: Found, expected: Found) -> None:
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


ROWS: dict[str, Callable[[], Tensor]] = {
    "random": lambda: randn(900, 16),
    "unit": lambda: normalize_rows(randn(900, 40)),
    "grid with ties": lambda: integers(3, 900, 3),
    "one dimension": lambda: integers(60, 900, 1),
    "duplicates": lambda: randn(30, 7).repeat(30, 1),
    "all the same": lambda: torch.ones(300, 4),
    "far from the origin": lambda: 1e5 + randn(900, 5),
    "huge": lambda: 1e30 * randn(900, 5),
    "tiny": lambda: 1e-30 * randn(900, 5),
    "one outlier": lambda: torch.cat([randn(899, 5), torch.full((1, 5), 1e9)]),
    "tight clusters": lambda: normalize_rows(randn(5, 9).repeat(160, 1) + 1e-4 * randn(800, 9)),
    "zeros": lambda: torch.zeros(50, 3),
}


@pytest.mark.parametrize("metric", ["euclidean", "inner_product"])
@pytest.mark.parametrize("name", ROWS)
def test_graph_equals_brute_force(
    name: str, metric: Metric, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn_cpu, "QUERY_BLOCK", 100)
    monkeypatch.setattr(knn_cpu, "BANK_BLOCK", 150)
    rows = ROWS[name]()
    own = torch.arange(rows.shape[0])
    expected = brute_force(rows, rows, 6, own, own, metric)
    assert_same(knn_self_join(rows, 6, metric=metric), expected)
    assert_same(knn_blocked(rows, rows, 6, query_ids=own, metric=metric), expected)


@settings(deadline=None, max_examples=60)
@given(
    num_rows=st.integers(1, 60),
    num_queries=st.integers(0, 20),
    dim=st.integers(1, 9),
    k=st.integers(1, 70),
    levels=st.integers(1, 4),
    seed=st.integers(0, 10_000),
)
def test_small_searches_with_ties_equal_brute_force(
    num_rows: int, num_queries: int, dim: int, k: int, levels: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    bank = torch.randint(0, levels, (num_rows, dim), generator=generator).float()
    queries = torch.randint(0, levels, (num_queries, dim), generator=generator).float()
    ids = torch.randperm(100, generator=generator)[:num_rows]
    query_ids = torch.randint(0, 100, (num_queries,), generator=generator)
    found = knn_blocked(queries, bank, k, query_ids=query_ids, bank_ids=ids)
    assert_same(found, brute_force(queries, bank, k, query_ids, ids, "euclidean"))


def test_all_others_are_neighbors_when_k_is_n_minus_1() -> None:
    rows = randn(40, 3)
    ids, distances = knn_self_join(rows, 39)
    assert torch.equal(ids.sort(1).values, torch.stack([_without(40, i) for i in range(40)]))
    assert (distances.diff(dim=1) >= 0).all()


def _without(n: int, i: int) -> Tensor:
    return torch.cat([torch.arange(i), torch.arange(i + 1, n)])


def test_queries_far_larger_than_the_bank_are_searched() -> None:
    bank, queries = randn(50, 4), torch.full((2, 4), 1e30)
    nobody = torch.full((2,), -1)
    expected = brute_force(queries, bank, 3, nobody, torch.arange(50), "euclidean")
    assert_same(knn_blocked(queries, bank, 3), expected)


def test_no_queries_and_an_empty_bank() -> None:
    ids, distances = knn_blocked(randn(0, 4), randn(5, 4), 2)
    assert ids.shape == distances.shape == (0, 2)
    ids, distances = knn_blocked(randn(2, 4), randn(0, 4), 2)
    assert ids.tolist() == [[-1, -1]] * 2
    assert torch.isinf(distances).all()


def test_k_must_be_positive() -> None:
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        knn_self_join(randn(5, 2), 0)


def test_number_of_threads_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = randn(3000, 8)
    before = torch.get_num_threads()
    results = []
    for num_threads in (1, 3):
        torch.set_num_threads(num_threads)
        results.append(knn_self_join(rows, 5))
        assert torch.get_num_threads() == num_threads
    torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_every_two_blocks_meet_once_and_no_round_uses_a_block_twice() -> None:
    for num_blocks in range(2, 12):
        rounds = list(knn_cpu._tournament(num_blocks))
        met = [pair for pairs in rounds for pair in pairs]
        assert sorted(met) == [(i, j) for i in range(num_blocks) for j in range(i + 1, num_blocks)]
        for pairs in rounds:
            used = [block for pair in pairs for block in pair]
            assert len(used) == len(set(used))


@pytest.mark.parametrize("name", ["random", "grid with ties"])
def test_merged_parts_equal_the_whole(name: str) -> None:
    rows = ROWS[name]()[:300]
    own = torch.arange(300)
    whole = knn_self_join(rows, 7)
    for parts in (own.split(300), own.split(110), own.split(29)):
        found = [
            knn_blocked(rows, rows[part], 7, query_ids=own, bank_ids=part)
            for part in reversed(parts)
        ]
        ids, distances = merge_topk([f[0] for f in found], [f[1] for f in found], 7)
        assert torch.equal(ids, whole[0])
        assert torch.equal(distances, whole[1])


def test_merge_orders_ties_by_id_and_pads() -> None:
    ids = [torch.tensor([[9, 4, -1]]), torch.tensor([[2, 7, -1]])]
    distances = [torch.tensor([[1.0, 2.0, torch.inf]]), torch.tensor([[1.0, 1.0, torch.inf]])]
    merged = merge_topk(ids, [d.double() for d in distances], 5)
    assert merged[0].tolist() == [[2, 7, 9, 4, -1]]
    assert merged[1].tolist() == [[1.0, 1.0, 1.0, 2.0, torch.inf]]
    assert merge_topk([ids[0]], [distances[0].double()], 4)[0].tolist() == [[9, 4, -1, -1]]


@pytest.mark.parametrize("missing", [0.0, 0.3, 0.999, 1.0])
def test_merge_of_many_lists_is_the_sorted_list(missing: float) -> None:
    """Distances with ties, at the k-th place too."""
    g = torch.Generator().manual_seed(4)
    ids = torch.stack([torch.randperm(3000, generator=g)[:900] for _ in range(20)])
    ids[torch.rand(ids.shape, generator=g) < missing] = -1
    distances = torch.randint(300, ids.shape, generator=g).double()
    merged = merge_topk(ids.split(15, dim=1), distances.split(15, dim=1), 7)
    rows = zip(distances.tolist(), ids.tolist())
    expected = [sorted(p for p in zip(*row) if p[1] >= 0)[:7] for row in rows]
    padded = [row + [(torch.inf, -1)] * (7 - len(row)) for row in expected]
    assert merged[0].tolist() == [[i for _, i in row] for row in padded]
    assert merged[1].tolist() == [[d for d, _ in row] for row in padded]
