"""Operations on lists in torch: what the compiled ones do, up to the order of equal keys."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.graph_store.kernels import lists, lists_device, offers
from labelmesh.graph_store.kernels.list_types import Framed, Hits, Lists, Partial, empty_partial
from labelmesh.graph_store.kernels.rounding import PRECISIONS, Precision, half_lengths, round_to
from torch import Tensor


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offers, "BLOCK", 32)
    monkeypatch.setattr(offers, "LEAST_HITS", 100)
    monkeypatch.setattr(offers, "HITS_PER_ROW", 1)
    monkeypatch.setattr(offers, "MERGED_ROWS", 7)
    monkeypatch.setattr(lists_device, "ROWS", 13)
    monkeypatch.setattr(lists_device, "PAIR_NUMBERS", 200)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def framed(rows: Tensor, first_id: int = 0, precision: Precision = "float32") -> Framed:
    rounded = round_to(rows, precision)
    ids = torch.arange(len(rows), dtype=torch.int32) + first_id
    return Framed(rounded.values, half_lengths(rounded), ids, rounded.unit, precision)


def true_keys(a: Framed, b: Framed) -> Tensor:
    """In float64; inf between a node and itself and for rows without part."""
    x, y = a.widen().rows.double(), b.widen().rows.double()
    keys = (x[:, None] - y).square().sum(2) / 2
    keys[a.ids[:, None] == b.ids] = torch.inf
    keys[torch.isinf(a.half)] = torch.inf
    keys[:, torch.isinf(b.half)] = torch.inf
    return keys


def assert_nearest(found: Partial, keys: Tensor) -> None:
    """The lists have the least keys, in order, and the nodes that these belong to."""
    width = found.keys.shape[1]
    expected = torch.full(found.keys.shape, torch.inf, dtype=torch.float64)
    least = keys.sort(1).values[:, :width]
    expected[:, : least.shape[1]] = least
    assert torch.allclose(found.keys.double(), expected, atol=1e-4)
    assert torch.equal(found.nodes < 0, torch.isinf(found.keys))
    for nodes in found.nodes.tolist():
        present = [node for node in nodes if node >= 0]
        assert len(present) == len(set(present))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("num_rows", [1, 31, 32, 33, 150])
def test_search_among_themselves(num_rows: int, precision: Precision) -> None:
    rows = framed(randn(num_rows, 9), precision=precision)
    found = lists_device.search_self(rows, 10)
    assert_nearest(found, true_keys(rows, rows))
    streamed = lists_device.search_self(rows, 10, budget=600)
    assert torch.allclose(streamed.keys, found.keys, atol=1e-4)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("budget", [None, 500])
def test_scan_fills_lists_and_names_all_hits(precision: Precision, budget: int | None) -> None:
    bank = framed(randn(140, 6), precision=precision)
    queries = bank.take(torch.arange(20, 70))
    bank.half[3] = torch.inf
    limits = torch.where(torch.arange(140) % 3 == 0, 2.0, -torch.inf)
    found = empty_partial(50, 12, bank.half.device)
    hits = lists_device.scan(queries, bank, found, limits, budget=budget)
    keys = true_keys(queries, bank)
    assert_nearest(found, keys)
    is_hit = keys < limits.double()
    expected = {(int(c), int(queries.ids[r])) for r, c in is_hit.nonzero().tolist()}
    named = list(zip(hits.rows.tolist(), hits.nodes.tolist()))
    assert set(named) == expected
    assert len(named) == len(expected)
    where = hits.nodes.long() - 20, hits.rows.long()
    assert torch.allclose(hits.keys.double(), keys[where], atol=1e-4)


def test_scan_without_queries_or_limits() -> None:
    bank = framed(randn(40, 3))
    none = bank.take(torch.arange(0))
    assert len(lists_device.scan(none, bank, empty_partial(0, 4, bank.half.device), None).rows) == 0
    found = empty_partial(40, 4, bank.half.device)
    assert len(lists_device.scan(bank, bank, found, None).rows) == 0
    assert_nearest(found, true_keys(bank, bank))


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_scan_of_both_sides(precision: Precision) -> None:
    a = framed(randn(70, 5), precision=precision)
    b = framed(randn(45, 5, seed=1), 100, precision=precision)
    lists_a, lists_b = (empty_partial(len(x.ids), 7, a.half.device) for x in (a, b))
    lists_device.scan_both(a, lists_a, b, lists_b)
    assert_nearest(lists_a, true_keys(a, b))
    assert_nearest(lists_b, true_keys(b, a))


def make_lists(num_rows: int, size: int, num_nodes: int, seed: int) -> Lists:
    """Packed lists of some lengths; distinct keys, so that there is one right answer."""
    g = torch.Generator().manual_seed(seed)
    order = torch.rand(num_rows, num_nodes, generator=g).argsort(1)
    ids = order[:, :size].to(torch.int32)
    keys = torch.rand(num_rows, size, generator=g).sort(1).values
    lengths = torch.randint(0, size + 1, (num_rows, 1), generator=g)
    is_empty = torch.arange(size) >= lengths
    horizon = torch.where(is_empty[:, -1], torch.inf, keys[:, -1] + 0.1)
    errors = torch.full_like(horizon, 0.01)
    ids, keys = ids.masked_fill(is_empty, -1), keys.masked_fill(is_empty, torch.inf)
    return Lists(ids, keys, horizon, errors)


def copy(x: Lists) -> Lists:
    return Lists(x.ids.clone(), x.keys.clone(), x.horizon.clone(), x.errors.clone())


def assert_same(a: Lists, b: Lists) -> None:
    assert torch.equal(a.ids, b.ids)
    assert torch.equal(a.keys, b.keys)
    assert torch.equal(a.horizon, b.horizon)


@settings(deadline=None, max_examples=40)
@given(num_rows=st.integers(0, 40), size=st.integers(1, 9), seed=st.integers(0, 10_000))
def test_members_are_found_and_dropped(num_rows: int, size: int, seed: int) -> None:
    ours = make_lists(num_rows, size, 30, seed)
    theirs = copy(ours)
    flags = torch.rand(30, generator=torch.Generator().manual_seed(seed + 1)) < 0.2
    assert torch.equal(lists_device.touched_rows(ours, flags), lists.touched_rows(theirs, flags))
    lists_device.drop_members(ours, flags)
    lists.drop_members(theirs, flags)
    assert_same(ours, theirs)


@settings(deadline=None, max_examples=40)
@given(size=st.integers(1, 9), num_hits=st.integers(0, 120), seed=st.integers(0, 10_000))
def test_admitted_hits(size: int, num_hits: int, seed: int) -> None:
    """Keys, nodes and horizons are those of one hit after the other."""
    ours = make_lists(20, size, 30, seed)
    ours.horizon.copy_(torch.where(torch.arange(20) % 4 == 0, 0.4, ours.horizon))
    theirs = copy(ours)
    g = torch.Generator().manual_seed(seed)
    pairs = torch.randperm(20 * 30, generator=g)[:num_hits]
    hits = Hits(
        (pairs // 30).to(torch.int32),
        (100 + pairs % 30).to(torch.int32),
        2 * torch.rand(num_hits, generator=g) - 0.2,
    )
    errors = torch.full((20,), 0.01)
    lists_device.admit(ours, hits, errors)
    lists.admit(theirs, hits, errors)
    # Who comes late may find the horizon lowered; all at once may admit more. Both are valid: what
    # is below both horizons is the same.
    for mine, other in ((ours, theirs), (theirs, ours)):
        bound = torch.minimum(ours.horizon, theirs.horizon)[:, None]
        kept = mine.ids.masked_fill(mine.keys - 0.01 >= bound, -1)
        assert torch.equal(kept, other.ids.masked_fill(other.keys - 0.01 >= bound, -1))
    assert torch.allclose(ours.horizon, theirs.horizon, atol=1e-6)


def test_lists_are_merged() -> None:
    a, b = make_lists(25, 6, 30, 0), make_lists(25, 6, 30, 1)
    b.ids += torch.where(b.ids >= 0, 100, 0).to(torch.int32)
    ours = Partial(a.keys.clone(), a.ids.clone())
    theirs = Partial(a.keys.clone(), a.ids.clone())
    lists_device.merge_partial(ours, Partial(b.keys, b.ids))
    lists.merge_partial(theirs, Partial(b.keys, b.ids))
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.nodes, theirs.nodes)


def test_rows_and_drifts() -> None:
    a = randn(50, 4)
    b = torch.where(torch.arange(50)[:, None] % 3 == 0, a, a + 1e-3 * randn(50, 4, seed=1))
    assert torch.equal(lists_device.differing_rows(a, b), lists.differing_rows(a, b))
    center = randn(4, seed=2)
    ours = lists_device.drift_of(a, b, 0.5, center)
    assert torch.allclose(ours, lists.drift_of(a, b, 0.5, center), rtol=1e-12)


@settings(deadline=None, max_examples=30)
@given(k=st.integers(1, 6), size=st.integers(1, 9), seed=st.integers(0, 10_000))
def test_ranked_lists_and_hits(k: int, size: int, seed: int) -> None:
    n = 40
    rows = (3 * randn(n, 3, seed=seed)).round()  # ties
    reference = rows + 0.01 * randn(n, 3, seed=seed + 1)
    table = make_lists(n, size, n, seed)
    at = table.ids.clamp(min=0).long()
    keys = (reference[:, None] - reference[at]).square().sum(2) / 2
    keys, order = keys.masked_fill(table.ids < 0, torch.inf).sort(1)
    table = Lists(table.ids.gather(1, order), keys, table.horizon, table.errors)
    drift = torch.linalg.vector_norm((rows - reference).double(), dim=1) + 1e-6
    own = torch.arange(0, n, 2)
    members = lists.Ranking(
        rows,
        drift,
        table.ids[own],
        float(drift.max()),
        1.0,
        torch.full((len(own),), 1e-4),
        1.0,
        torch.ones(n, dtype=torch.bool),
        torch.zeros(len(own), dtype=torch.bool),
    )
    found, hits = [], torch.randperm(n * n, generator=torch.Generator().manual_seed(seed))[:60]
    for module in (lists_device, lists):
        ids = torch.full((n, k), -1)
        distances = torch.full((n, k), torch.inf, dtype=torch.float64)
        part = ids[own], distances[own]
        module.rank_lists(table, own, rows, drift, members, *part)
        ids[own], distances[own] = part
        pairs = Hits(*(c.to(torch.int32) for c in (hits // n, hits % n)), torch.zeros(len(hits)))
        module.rank_hits(pairs, rows, rows, hits % n, ids, distances)
        found.append((ids, distances))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_low_precision_on_the_cpu_is_that_of_the_widened_rows() -> None:
    rows = framed(randn(60, 8), precision="int8")
    found = lists.search_self(rows, 10)
    assert_nearest(found, true_keys(rows, rows))
    assert torch.equal(found.nodes, lists.search_self(replace(rows.widen()), 10).nodes)
