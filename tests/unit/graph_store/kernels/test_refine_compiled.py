"""Inner loops of refinement against plain Python sets and sorts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from labelmesh.graph_store.kernels import refine_compiled
from labelmesh.graph_store.kernels.knn import canonical_distances, merge_topk
from numpy.random import default_rng

MASK = (1 << 64) - 1


def splitmix(number: int) -> int:
    z = (number + 0x9E3779B97F4A7C15) & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


def random_lists(num_rows: int, k: int, num_nodes: int, seed: int) -> np.ndarray:
    """Distinct neighbours per row, of different numbers, then -1."""
    rng = default_rng(seed)
    lists = np.stack([rng.permutation(num_nodes)[:k] for _ in range(num_rows)])
    lists[np.arange(k) >= rng.integers(0, k + 1, num_rows)[:, None]] = -1
    return lists.astype(np.int64)


@pytest.mark.parametrize("number", [0, 1, 2**63, MASK])
def test_mix_is_splitmix(number: int) -> None:
    assert int(refine_compiled.mix(np.uint64(number))) == splitmix(number)


def test_edges_carry_hashes_and_new_ones_go_first() -> None:
    ids = random_lists(20, 5, 100, 0)
    is_new = default_rng(1).random(ids.shape) < 0.5
    edges = np.empty((int((ids >= 0).sum()), 4), np.int64)
    refine_compiled.list_edges(40, ids, is_new, 7, edges)
    expected = [
        (v, 40 + i, (splitmix(v ^ splitmix((40 + i) ^ splitmix(7))) >> 3) + (0 if new else 1 << 61))
        for i in range(20)
        for v, new in zip(ids[i].tolist(), is_new[i])
        if v >= 0
    ]
    assert [tuple(edge) for edge in edges[:, :3].tolist()] == expected
    assert (edges[:, 3] == is_new[ids >= 0]).all()
    assert edges[edges[:, 3] == 1, 2].max() < edges[edges[:, 3] == 0, 2].min()


def test_reverse_edges_of_lowest_priority_are_kept_in_any_order() -> None:
    rng = default_rng(2)
    edges = np.stack([rng.integers(0, 12, 200), np.arange(200), rng.integers(0, 9, 200)], 1)
    edges = np.concatenate([edges, rng.integers(0, 2, (200, 1))], 1)
    for order in (np.arange(200), rng.permutation(200)):
        sources = np.full((8, 6), -1)
        priorities, is_new = np.zeros((8, 6), np.int64), np.zeros((8, 6), np.bool_)
        for first, last in ((3, 7), (7, 11)):
            refine_compiled.keep_reverse(edges[order], first, last, 3, sources, priorities, is_new)
        for row in range(8):
            wanted = sorted((p, u, new) for t, u, p, new in edges.tolist() if t == row + 3)[:6]
            size = len(wanted)
            got = zip(priorities[row].tolist(), sources[row].tolist(), is_new[row].tolist())
            assert list(got)[:size] == wanted
            assert (sources[row, size:] == -1).all()


def test_directions_are_merged_once_and_new_ones_first() -> None:
    forward, reverse = random_lists(50, 6, 20, 3), random_lists(50, 5, 20, 4)
    rng = default_rng(5)
    forward_new, reverse_new = rng.random(forward.shape) < 0.4, rng.random(reverse.shape) < 0.4
    around, num_new = np.empty((50, 11), np.int64), np.empty(50, np.int64)
    refine_compiled.merge_directions(forward, forward_new, reverse, reverse_new, around, num_new)
    for i in range(50):
        marks: dict[int, bool] = {}
        for ids, news in ((forward[i], forward_new[i]), (reverse[i], reverse_new[i])):
            for v, new in zip(ids.tolist(), news.tolist()):
                if v >= 0:
                    marks[v] = marks.get(v, False) or new
        got = around[i].tolist()
        first = got[: num_new[i]]
        assert sorted(first) == sorted(v for v, new in marks.items() if new)
        rest = got[num_new[i] : len(marks)]
        assert sorted(rest) == sorted(v for v, new in marks.items() if not new)
        assert set(got[len(marks) :]) <= {-1}


def test_candidates_are_those_of_nested_loops() -> None:
    num_nodes = 40
    around, lists = random_lists(num_nodes, 7, num_nodes, 6), random_lists(10, 4, num_nodes, 7)
    size = (around >= 0).sum(1)
    num_new = default_rng(8).integers(0, size + 1)
    num_through = default_rng(9).integers(0, size[5:15] + 1)
    places = around[5:15].copy()
    places[0, :2] = -1  # not needed
    candidates, counts = np.empty((10, 49), np.int64), np.empty(10, np.int64)
    refine_compiled.collect(
        5, lists, around[5:15], num_through, places, around, num_new, candidates, counts
    )
    for i in range(10):
        expected = set()
        for a, v in enumerate(places[i].tolist()):
            if v >= 0:
                stop = 7 if a < num_through[i] else num_new[v]
                expected |= set(around[v, :stop].tolist())
        expected -= {-1, 5 + i, *lists[i].tolist()}
        got = candidates[i, : counts[i]].tolist()
        assert len(got) == len(set(got))
        assert set(got) == expected


@pytest.mark.parametrize("is_product", [False, True])
@pytest.mark.parametrize("dim", [1, 3, 40])
def test_offered_candidates_give_the_nearest_and_marks(is_product: bool, dim: int) -> None:
    generator = torch.Generator().manual_seed(dim)
    # Small integers: many ties, which ids decide.
    rows = torch.randint(0, 3, (60, dim), generator=generator).float()
    first, k = 20, 5
    known = torch.from_numpy(random_lists(10, k, 60, 10))
    known[known == torch.arange(10)[:, None] + first] = -1
    metric = "inner_product" if is_product else "euclidean"

    def distances_to(ids: torch.Tensor) -> torch.Tensor:
        pairs = rows[first : first + 10][:, None].expand(-1, ids.shape[1], -1)
        found = canonical_distances(pairs.contiguous(), rows[ids.clamp(min=0)], metric)  # type: ignore[arg-type]
        return torch.where(ids < 0, torch.inf, found)

    ids, distances = merge_topk([known], [distances_to(known)], k)
    before = ids.clone()
    marks = torch.rand(10, k, generator=generator) < 0.5
    marks &= ids >= 0
    is_new, is_changed = marks.clone(), torch.zeros(10, dtype=torch.bool)
    candidates = torch.randint(-1, 60, (10, 12), generator=generator)
    candidates[:, 8:10] = candidates[:, :2]  # repeated
    candidates[0, 0] = first  # the node itself
    counts = torch.full((10,), 11)
    refine_compiled.offer(
        first,
        rows[first : first + 10].numpy(),
        rows.numpy(),
        candidates.numpy(),
        candidates.numpy(),
        counts.numpy(),
        is_product,
        ids.numpy(),
        distances.numpy(),
        is_new.numpy(),
        is_changed.numpy(),
    )
    for i in range(10):
        offered = set(candidates[i, :11].tolist()) | set(before[i].tolist())
        union = torch.tensor([sorted(offered - {-1, first + i})])
        pair = canonical_distances(
            rows[first + i].expand(1, union.shape[1], dim).contiguous(),
            rows[union],
            metric,  # type: ignore[arg-type]
        )
        expected = merge_topk([union], [pair], k)
        assert torch.equal(ids[i], expected[0][0])
        assert torch.equal(distances[i], expected[1][0])
        old = dict(zip(before[i].tolist(), marks[i].tolist()))
        assert is_new[i].tolist() == [v >= 0 and old.get(v, True) for v in ids[i].tolist()]
        assert is_changed[i].item() == (not torch.equal(before[i], ids[i]))


@pytest.mark.parametrize("dim", [1, 64, 1000])
def test_squared_is_within_its_bound(dim: int) -> None:
    a, b = default_rng(dim).normal(size=(2, 200, dim)).astype(np.float32)
    exact = ((a.astype(np.float64) - b) ** 2).sum(1)
    got = np.array([refine_compiled.squared(x, y) for x, y in zip(a, b)])
    assert (np.abs(got - exact) <= (dim + 4) * 2.0**-24 * exact).all()
