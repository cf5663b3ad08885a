"""The pruned search against a search of everything: ids, order and distances, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.graph_store.kernels import knn_cells, knn_cpu
from labelmesh.graph_store.kernels.cells import guard, make_cells
from labelmesh.graph_store.kernels.knn import (
    Found,
    canonical_distances,
    make_bank,
    make_search,
    normalize_rows,
)
from torch import Tensor


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(1)).float()


def brute_force(queries: Tensor, bank: Tensor, k: int, query_ids: Tensor, ids: Tensor) -> Found:
    """All pairs, sorted by distance after they were sorted by id."""
    shape = (queries.shape[0], *bank.shape)
    pairs = canonical_distances(queries[:, None].expand(shape), bank[None].expand(shape))
    is_self = query_ids[:, None] == ids[None]
    pairs = torch.where(is_self, torch.inf, pairs)
    by_id = ids.argsort()
    distances, order = pairs[:, by_id].sort(dim=1, stable=True)
    found = ids[by_id][order].where(distances.isfinite(), -1)
    missing = max(0, k - ids.shape[0])
    found = torch.nn.functional.pad(found[:, :k], (0, missing), value=-1)
    return found, torch.nn.functional.pad(distances[:, :k], (0, missing), value=torch.inf)


def assert_same(found: Found, expected: Found) -> None:
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


ROWS: dict[str, Callable[[], Tensor]] = {
    "random": lambda: randn(900, 16),
    "unit": lambda: normalize_rows(randn(900, 24)),
    "grid with ties": lambda: integers(3, 900, 3),
    "one dimension": lambda: integers(60, 900, 1),
    "duplicates": lambda: randn(30, 7).repeat(30, 1),
    "all the same": lambda: torch.ones(300, 4),
    "far from the origin": lambda: 1e5 + randn(900, 5),
    "huge": lambda: 1e30 * randn(900, 5),
    "tiny": lambda: 1e-30 * randn(900, 5),
    "one outlier": lambda: torch.cat([randn(899, 5), torch.full((1, 5), 1e9)]),
    "tight clusters": lambda: normalize_rows(randn(5, 9).repeat(160, 1) + 1e-4 * randn(800, 9)),
    "clusters": lambda: blobs(900, 12),
    "zeros": lambda: torch.zeros(50, 3),
}


def blobs(num_rows: int, dim: int, seed: int = 0) -> Tensor:
    """Ten tight groups, far from each other."""
    generator = torch.Generator().manual_seed(seed)
    middle = 8 * torch.randn(10, dim, generator=generator)
    group = torch.randint(0, 10, (num_rows,), generator=generator)
    return middle[group] + torch.randn(num_rows, dim, generator=generator)


def self_search(rows: Tensor, k: int) -> knn_cpu.Search:
    own = torch.arange(rows.shape[0])
    return make_search(make_bank(rows, own, "euclidean"), rows, k, own)


@cache
def expected_graph(name: str) -> Found:
    rows = ROWS[name]()
    own = torch.arange(rows.shape[0])
    return brute_force(rows, rows, 6, own, own)


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("num_cells", [1, 7, 90])
def test_pruned_graph_equals_brute_force(
    name: str, num_cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knn_cells, "QUERY_BLOCK", 100)
    monkeypatch.setattr(knn_cells, "BANK_BLOCK", 30)
    monkeypatch.setattr(knn_cells, "_MIN_BLOCK", 8)
    task = self_search(ROWS[name](), 6)
    found = knn_cells.search(task, make_cells(task.filter.bank, num_cells, seed=2))
    assert_same(found, expected_graph(name))


@settings(deadline=None, max_examples=80)
@given(
    num_rows=st.integers(1, 80),
    num_queries=st.integers(0, 25),
    dim=st.integers(1, 9),
    k=st.integers(1, 70),
    levels=st.integers(1, 4),
    num_cells=st.integers(1, 30),
    min_block=st.integers(1, 20),
    seed=st.integers(0, 10_000),
)
def test_small_searches_with_ties_equal_brute_force(
    num_rows: int,
    num_queries: int,
    dim: int,
    k: int,
    levels: int,
    num_cells: int,
    min_block: int,
    seed: int,
) -> None:
    generator = torch.Generator().manual_seed(seed)
    bank = torch.randint(0, levels, (num_rows, dim), generator=generator).float()
    queries = torch.randint(0, levels + 1, (num_queries, dim), generator=generator).float()
    ids = torch.randperm(100, generator=generator)[:num_rows]
    query_ids = torch.randint(0, 100, (num_queries,), generator=generator)
    task = make_search(make_bank(bank, ids, "euclidean"), queries, k, query_ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(knn_cells, "_MIN_BLOCK", min_block)
        found = knn_cells.search(task, make_cells(task.filter.bank, num_cells, seed))
    assert_same(found, brute_force(queries, bank, k, query_ids, ids))


@pytest.mark.parametrize("num_queries", [40, 700])
def test_queries_that_are_no_rows_of_the_bank(num_queries: int) -> None:
    bank, queries = blobs(3000, 10), blobs(num_queries, 10) + 0.1
    task = make_search(make_bank(bank, torch.arange(3000), "euclidean"), queries, 9, None)
    found = knn_cells.search(task, make_cells(task.filter.bank, 30))
    assert_same(found, knn_cpu.search(task))


def test_number_of_threads_does_not_show() -> None:
    task = self_search(blobs(3000, 8), 5)
    before, results = torch.get_num_threads(), []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        results.append(knn_cells.search(task, make_cells(task.filter.bank, 40)))
        assert torch.get_num_threads() == num_threads
    torch.set_num_threads(before)
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])


@pytest.mark.parametrize("num_queries", [60, 600])
def test_limits_keep_all_that_is_nearer(num_queries: int) -> None:
    rows, own = blobs(600, 8), torch.arange(num_queries)
    task = make_search(make_bank(rows, torch.arange(600), "euclidean"), rows[:num_queries], 20, own)
    queries, bank = task.filter.queries.rows.double(), task.filter.bank.rows.double()
    keys = (queries[:, None] - bank[None]).square().sum(-1) / 2
    keys[own, own] = torch.inf
    limits = keys.kthvalue(8, dim=1).values.float()
    lists, bounds = knn_cells.preselect(task, make_cells(task.filter.bank, 25), 21, limits)
    assert torch.equal(bounds, limits)
    is_listed = torch.zeros(num_queries, 600, dtype=torch.bool)
    row, column = lists.keys.isfinite().nonzero(as_tuple=True)
    is_listed[row, lists.positions[row, column].long()] = True
    slack = guard(8, task.filter.longest)
    assert (is_listed.sum(1) >= 7).all()
    assert (is_listed.sum(1) < 21).all()
    assert is_listed[keys < limits[:, None] - slack].all()


def test_far_cells_are_not_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten groups of 200 rows: a row needs little more than its own group."""
    task = self_search(blobs(2000, 16), 5)
    cells = make_cells(task.filter.bank, 10, seed=1)
    products, multiply = [], torch.mm

    def count(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        products.append(a.shape[0] * b.shape[1])
        return multiply(a, b, out=out)

    monkeypatch.setattr(torch, "mm", count)
    lists, _ = knn_cells.preselect(task, cells, 13)
    assert lists.keys.isfinite().all()
    assert sum(products) < 0.3 * 2000**2


def test_bank_without_rows_and_no_queries() -> None:
    for num_queries, num_rows in ((0, 5), (2, 0)):
        bank = make_bank(randn(num_rows, 4), torch.arange(num_rows), "euclidean")
        task = make_search(bank, randn(num_queries, 4, seed=1), 2, None)
        ids, distances = knn_cells.search(task, make_cells(task.filter.bank, 1))
        assert ids.shape == distances.shape == (num_queries, 2)
        assert torch.isinf(distances).all()
