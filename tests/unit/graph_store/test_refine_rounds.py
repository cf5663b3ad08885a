"""One local join against loops over a small graph."""

from __future__ import annotations

import pytest
import torch
from labelmesh.graph_store.exchange import OneProcess
from labelmesh.graph_store.kernels.knn import canonical_distances, merge_topk
from labelmesh.graph_store.refine_rounds import (
    Lists,
    empty_lists,
    join_round,
    offer_candidates,
    values_at,
)
from torch import Tensor

N, K = 80, 4


def problem(seed: int) -> tuple[Tensor, Lists, Tensor]:
    """Rows, random lists of different lengths with random marks, and loosened nodes."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 6, (N, 3), generator=generator).float()
    lists = empty_lists(N, K)
    candidates = torch.randint(-1, N, (N, K), generator=generator)
    candidates[torch.arange(N) % 7 == 2, 1:] = -1
    offer_candidates(OneProcess(N), rows, lists, candidates)
    lists.is_new.copy_((torch.rand(N, K, generator=generator) < 0.3) & (lists.ids >= 0))
    return rows, lists, torch.rand(N, generator=generator) < 0.2


def expected_ids(rows: Tensor, lists: Lists, loosened: Tensor) -> list[list[int]]:
    """u sees w over v where u-v or v-w is new in either direction, or u is loosened."""
    marks: dict[tuple[int, int], bool] = {}
    for u in range(N):
        for v, new in zip(lists.ids[u].tolist(), lists.is_new[u].tolist()):
            if v >= 0:
                for edge in ((u, v), (v, u)):
                    marks[edge] = marks.get(edge, False) or new
    around: dict[int, list[int]] = {u: [] for u in range(N)}
    for u, v in marks:
        around[u].append(v)
    result = []
    for u in range(N):
        seen = set(lists.ids[u].tolist())
        for v in around[u]:
            seen |= {w for w in around[v] if loosened[u] or marks[u, v] or marks[v, w]}
        others = torch.tensor([sorted(seen - {u, -1})], dtype=torch.int64)
        distances = canonical_distances(rows[u].expand(1, others.shape[1], -1), rows[others])
        result.append(merge_topk([others], [distances], K)[0][0].tolist())
    return result


@pytest.mark.parametrize("seed", range(4))
def test_join_finds_what_new_edges_lead_to(seed: int) -> None:
    rows, lists, loosened = problem(seed)
    before = lists.ids.clone()
    expected = expected_ids(rows, lists, loosened)
    # Room for all reverse neighbours: none is left out.
    work = join_round(OneProcess(N), rows, lists, loosened, num_reverse=N, seed=0)
    assert lists.ids.tolist() == expected
    has_entered = (lists.ids[:, :, None] != before[:, None]).all(2)
    assert torch.equal(lists.is_new, has_entered)
    assert work.num_changed == int((lists.ids != before).any(1).sum())


def test_reverse_neighbours_that_take_part_are_drawn_by_the_seed() -> None:
    found = []
    for seed in (0, 0, 1):
        rows, lists, loosened = problem(0)
        join_round(OneProcess(N), rows, lists, loosened, num_reverse=1, seed=seed)
        found.append(lists.ids)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_join_of_old_edges_looks_at_nothing() -> None:
    rows, lists, _ = problem(1)
    lists.is_new.zero_()
    before = lists.ids.clone()
    nobody = torch.zeros(N, dtype=torch.bool)
    work = join_round(OneProcess(N), rows, lists, nobody, num_reverse=K, seed=0)
    assert (work.num_changed, work.num_candidates) == (0, 0)
    assert torch.equal(lists.ids, before)


def test_values_at_none_are_the_missing_one() -> None:
    column, ids = torch.tensor([5, 6, 7]), torch.tensor([[2, -1], [0, 1]])
    assert values_at(OneProcess(3), column, ids, missing=9).tolist() == [[7, 9], [5, 6]]
    empty = torch.zeros(0, dtype=torch.bool)
    assert values_at(OneProcess(0), empty, ids * 0 - 1, missing=True).all()
