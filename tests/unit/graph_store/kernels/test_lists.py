"""Lists with a horizon against dense numpy: searches, scans, admission, ranking."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from labelmesh.graph_store.kernels import knn_cpu, lists
from labelmesh.graph_store.kernels.lists import Framed, Hits, Lists, Partial, Ranking
from labelmesh.graph_store.kernels.rows import canonical_distances
from torch import Tensor

D = 4
CPU = torch.device("cpu")


@pytest.fixture(params=["large blocks", "small blocks"], autouse=True)
def blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "small blocks":
        for module in (knn_cpu, lists):
            monkeypatch.setattr(module, "QUERY_BLOCK", 8)
            monkeypatch.setattr(module, "BANK_BLOCK", 10)
    return


def framed(n: int, seed: int = 0, first_id: int = 0) -> Framed:
    """Rows of whole numbers: float32 keys are exact, and there are ties."""
    g = torch.Generator().manual_seed(seed)
    rows = (3 * torch.randn(n, D, generator=g)).round()
    half = rows.square().sum(1) / 2
    return Framed(rows, half, torch.arange(first_id, first_id + n, dtype=torch.int32))


def dense(a: Framed, b: Framed) -> Tensor:
    """Keys of all pairs; inf for a node with itself and where one has no part."""
    keys = (a.rows[:, None] - b.rows[None]).square().sum(2) / 2
    keys[a.ids[:, None] == b.ids[None]] = torch.inf
    keys[torch.isinf(a.half)] = torch.inf
    keys[:, torch.isinf(b.half)] = torch.inf
    return keys


def assert_nearest(found: Partial, keys: Tensor, ids: Tensor) -> None:
    """The least keys in ascending order; of equal ones at the end, any."""
    width = found.keys.shape[1]
    padded = torch.nn.functional.pad(keys, (0, width), value=torch.inf)
    assert torch.equal(found.keys, padded.sort(dim=1).values[:, :width])
    for row in range(len(keys)):
        nodes = found.nodes[row][found.nodes[row] >= 0]
        assert len(set(nodes.tolist())) == len(nodes) == int(found.keys[row].isfinite().sum())
        at = [int((ids == node).nonzero()) for node in nodes]
        assert torch.equal(keys[row, at], found.keys[row, : len(nodes)])


@pytest.mark.parametrize("n", [0, 1, 5, 40, 83])
@pytest.mark.parametrize("size", [8, 20])
def test_search_of_rows_among_themselves(n: int, size: int) -> None:
    rows = framed(n, first_id=100)
    found = lists.search_self(rows, size)
    assert found.keys.shape == (n, size + 1)
    assert_nearest(found, dense(rows, rows), rows.ids)


@pytest.mark.parametrize("num_queries", [0, 1, 23])
def test_scan_finds_the_nearest_and_who_is_near(num_queries: int) -> None:
    bank = framed(61)
    bank.half[[4, 50]] = torch.inf
    queries = Framed(bank.rows[3:], bank.half[3:], bank.ids[3:]).take(torch.arange(num_queries) * 2)
    queries.half[queries.half == torch.inf] = 1.0
    queries = Framed(queries.rows, queries.rows.square().sum(1) / 2, queries.ids)
    limits = torch.arange(61.0) % 13
    limits[::7] = -torch.inf
    limits[5] = torch.inf
    found = lists.empty_partial(num_queries, 8, CPU)
    hits = lists.scan(queries, bank, found, limits)
    keys = dense(queries, bank)
    assert_nearest(found, keys, bank.ids)
    is_hit = keys < limits
    wanted = {(int(b), int(queries.ids[q]), float(keys[q, b])) for q, b in is_hit.nonzero()}
    got = list(zip(hits.rows.tolist(), hits.nodes.tolist(), hits.keys.tolist()))
    assert len(got) == len(wanted)
    assert set(got) == wanted


def test_scan_without_limits_hits_nobody() -> None:
    bank, queries = framed(30), framed(9, seed=1, first_id=30)
    found = lists.empty_partial(9, 8, CPU)
    assert len(lists.scan(queries, bank, found, None).rows) == 0
    assert_nearest(found, dense(queries, bank), bank.ids)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 31), (31, 7), (40, 40), (0, 5), (5, 0)])
def test_two_sets_of_rows_are_offered_to_each_other(n: int, m: int) -> None:
    a, b = framed(n), framed(m, seed=1, first_id=n)
    lists_a, lists_b = lists.empty_partial(n, 8, CPU), lists.empty_partial(m, 8, CPU)
    lists.scan_both(a, lists_a, b, lists_b)
    assert_nearest(lists_a, dense(a, b), b.ids)
    assert_nearest(lists_b, dense(b, a), a.ids)


def test_merging_lists_of_parts_gives_those_of_the_whole() -> None:
    queries, bank = framed(20, first_id=100), framed(60, seed=1)
    parts = []
    for part in (slice(0, 5), slice(5, 60)):
        parts.append(lists.empty_partial(20, 8, CPU))
        lists.scan(queries, bank.take(torch.arange(60)[part]), parts[-1], None)
    lists.merge_partial(*parts)
    assert_nearest(parts[0], dense(queries, bank), bank.ids)


def kept(n: int, size: int, error: float = 0.0) -> tuple[Framed, Lists]:
    """Lists of rows whose keys are taken to be off by some error, whatever it is."""
    rows = framed(n)
    return rows, finish(lists.search_self(rows, size), error)


def finish(found: Partial, error: float) -> Lists:
    state = lists.finish(found, torch.zeros(len(found.keys)), D, "float32")
    state.errors.fill_(error)
    state.horizon.copy_(found.keys[:, -1] - error)
    return state


def test_horizons_are_lowered_by_what_keys_of_so_short_rows_can_be_off() -> None:
    """A row far away has no part in it; where a list has room, nothing is known."""
    rows = framed(40)
    rows.rows[0] *= 1000
    rows.half[0] *= 1e6
    found = lists.search_self(rows, 8)
    state = lists.finish(found, rows.half, D, "float32")
    last = found.keys[:, -1].double()
    longest = (2 * rows.half.double()).sqrt() + (2 * last).sqrt()
    wanted = 2 * (D + 16) * 2.0**-24 * longest.square()
    assert torch.allclose(state.errors.double(), wanted, rtol=2e-3)
    assert (state.horizon.double() <= (last - wanted) * (1 + 2.0**-22)).all()
    assert torch.allclose(state.horizon.double(), last - wanted, rtol=1e-5)
    assert (
        lists.finish(lists.search_self(framed(5), 8), torch.ones(5), D, "float32")
        .errors.isinf()
        .all()
    )


def test_the_last_place_becomes_the_horizon() -> None:
    rows, state = kept(40, 8, error=0.25)
    keys = dense(rows, rows).sort(dim=1).values
    assert torch.equal(state.horizon, keys[:, 8] - 0.25)
    assert state.size == 8
    few = kept(9, 8)[1]
    assert few.horizon.eq(torch.inf).all()
    assert few.ids.ge(0).all()


def assert_invariant(rows: Framed, state: Lists, error: float) -> None:
    keys = dense(rows, rows)
    for i in range(len(keys)):
        nodes = state.ids[i][state.ids[i] >= 0].long()
        assert len(set(nodes.tolist())) == len(nodes)
        assert (state.ids[i, len(nodes) :] == -1).all()
        assert (state.keys[i, len(nodes) :] == torch.inf).all()
        assert torch.equal(keys[i, nodes], state.keys[i, : len(nodes)])
        assert (state.keys[i].diff() >= 0).logical_or(state.keys[i, 1:].isinf()).all()
        outside = keys[i].clone()
        outside[nodes] = torch.inf
        assert float(outside.min()) >= float(state.horizon[i]) + (
            error if state.horizon[i].isfinite() else 0.0
        )


@pytest.mark.parametrize("n", [8, 40])
@pytest.mark.parametrize("error", [0.0, 0.5])
def test_moved_references_keep_the_horizons_true(n: int, error: float) -> None:
    """Dropped from all lists, scanned, and admitted where they came near."""
    rows, state = kept(n, 8, error)
    g = torch.Generator().manual_seed(7)
    for _ in range(12):
        moved = torch.randperm(n, generator=g)[:3]
        is_moved = torch.zeros(n, dtype=torch.bool)
        is_moved[moved] = True
        rows.rows[moved] = (3 * torch.randn(3, D, generator=g)).round()
        rows.half[moved] = rows.rows[moved].square().sum(1) / 2
        lists.drop_members(state, is_moved)
        found = lists.empty_partial(3, 8, CPU)
        limits = torch.where(is_moved, -torch.inf, state.horizon + error)
        hits = lists.scan(rows.take(moved), rows, found, limits)
        own = finish(found, error)
        state.ids[moved], state.keys[moved] = own.ids, own.keys
        state.horizon[moved] = own.horizon
        lists.admit(state, hits, torch.full((n,), error))
        assert_invariant(rows, state, 0.0)


def test_who_does_not_fit_lowers_the_horizon() -> None:
    state = Lists(
        torch.tensor([[5, 6], [5, 6], [5, -1]], dtype=torch.int32),
        torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, torch.inf]]),
        torch.tensor([3.0, 3.0, 3.0]),
        torch.full((3,), 0.25),
    )
    hits = Hits(
        torch.tensor([0, 1, 2, 0], dtype=torch.int32),
        torch.tensor([7, 7, 7, 8], dtype=torch.int32),
        torch.tensor([1.5, 2.5, 2.5, 9.0]),
    )
    lists.admit(state, hits, state.errors)
    assert state.ids.tolist() == [[5, 7], [5, 6], [5, 7]]
    assert state.keys.tolist() == [[1.0, 1.5], [1.0, 2.0], [1.0, 2.5]]
    assert state.horizon.tolist() == [1.75, 2.25, 3.0]


def test_lists_stay_packed_when_members_go() -> None:
    _, state = kept(40, 8)
    before = state.ids.clone()
    gone = torch.arange(40) % 3 == 0
    touched = lists.touched_rows(state, gone)
    assert torch.equal(touched, (before % 3 == 0).any(1))
    lists.drop_members(state, gone)
    for row, old in zip(state.ids.tolist(), before.tolist()):
        left = [node for node in old if node % 3]
        assert row == left + [-1] * (8 - len(left))
    assert not lists.touched_rows(state, gone).any()


def test_rows_that_differ() -> None:
    a = torch.zeros(2050, 3)
    b = a.clone()
    b[[0, 7, 2049], [0, 2, 1]] = torch.tensor([1.0, 1e-45, -1.0])
    b[3, 1] = -0.0
    assert lists.differing_rows(a, b).nonzero()[:, 0].tolist() == [0, 7, 2049]
    assert lists.differing_rows(a[:0], b[:0]).shape == (0,)


@pytest.mark.parametrize("stretch", [1.0, 2.0])
@pytest.mark.parametrize("keeps", [False, True])
def test_ranking_is_that_of_all_members(stretch: float, keeps: bool) -> None:
    """What drift excludes is not looked at, and what has not moved is kept."""
    n, k, size = 60, 4, 16
    references, state = kept(n, size)
    g = torch.Generator().manual_seed(3)
    before = stretch * references.rows
    ids, distances = torch.full((n, k), -1), torch.full((n, k), torch.inf, dtype=torch.float64)
    is_changed = torch.ones(n, dtype=torch.bool)
    counts = []
    for now, is_kept in ((before, False), (before.clone(), keeps)):
        if is_kept:
            is_changed = torch.arange(n) % 5 == 0
            now[is_changed] += 0.3 * torch.randn(int(is_changed.sum()), D, generator=g)
        drift = torch.linalg.vector_norm(now.double() - stretch * references.rows.double(), dim=1)
        ranking = Ranking(
            now,
            drift,
            state.ids,
            float(drift.max()),
            stretch,
            torch.zeros(n),
            1.0,
            is_changed,
            torch.full((n,), is_kept) & ~is_changed,
        )
        own = torch.arange(n)
        counts.append(lists.rank_lists(state, own, now, drift, ranking, ids, distances))
        members = state.ids.long()
        wanted = canonical_distances(now[:, None].expand(-1, size, -1), now[members])
        order = np.lexsort((members.numpy(), wanted.numpy()), axis=1)[:, :k]
        assert np.array_equal(ids.numpy(), np.take_along_axis(members.numpy(), order, 1))
        assert np.array_equal(distances.numpy(), np.take_along_axis(wanted.numpy(), order, 1))
    assert counts[0] < n * size
    assert counts[1] <= counts[0]


def test_short_lists_leave_places_empty() -> None:
    rows, state = kept(3, 8)
    ids, distances = torch.zeros(3, 4).long(), torch.zeros(3, 4, dtype=torch.float64)
    flags, zeros = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.float64)
    ranking = Ranking(rows.rows, zeros, state.ids, 0.0, 1.0, torch.zeros(3), 1.0, flags, ~flags)
    lists.rank_lists(state, torch.arange(3), rows.rows, zeros, ranking, ids, distances)
    assert (ids[:, 2:] == -1).all()
    assert distances[:, 2:].isinf().all()
    assert ids[:, :2].ge(0).all()


def test_hits_are_ranked_once() -> None:
    rows = torch.tensor([[0.0], [1.0], [2.0], [-1.0], [0.5]])
    ids = torch.tensor([[1, 2], [0, 2], [-1, -1], [-1, -1], [-1, -1]])
    distances = torch.tensor([[1, 2], [1, 1], *[[torch.inf] * 2] * 3], dtype=torch.float64)
    at = torch.tensor([0, 0, 0, 1, 2, 2], dtype=torch.int32)
    nodes = torch.tensor([3, 1, 4, 4, 0, 0], dtype=torch.int32)
    hits = Hits(at, nodes, torch.zeros(6))
    lists.rank_hits(hits, rows, rows, nodes.long(), ids, distances)
    assert ids[:3].tolist() == [[4, 1], [4, 0], [0, -1]]
    assert distances[0].tolist() == [0.5, 1.0]
    assert distances[2].tolist() == [2.0, torch.inf]


def test_drift_is_a_distance_in_the_frame() -> None:
    g = torch.Generator().manual_seed(1)
    rows, reference = torch.randn(30, D, generator=g), torch.randn(30, D, generator=g)
    center = torch.randn(D, generator=g)
    found = lists.drift_of(rows, reference, 0.5, center)
    wanted = rows.double() / 2 - center.double() - reference.double()
    torch.testing.assert_close(found, torch.linalg.vector_norm(wanted, dim=1))


def test_keys_of_long_references_are_in_their_own_frame() -> None:
    """Beyond 2^20 they were once scaled, so that keys of one list could not be compared."""
    rows = framed(30)
    far = Framed(rows.rows * 2.0**21, rows.half * 2.0**42, rows.ids)
    assert_nearest(lists.search_self(far, 8), dense(far, far), far.ids)
