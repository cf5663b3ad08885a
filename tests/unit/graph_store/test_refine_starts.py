"""Pivots and cells against brute force."""

from __future__ import annotations

import torch
from labelmesh.graph_store.exchange import OneProcess
from labelmesh.graph_store.kernels.knn import canonical_distances
from labelmesh.graph_store.recall import choose_sample
from labelmesh.graph_store.refine_starts import cell_mates, nearest_pivots
from torch import Tensor

N = 150
PIVOTS = 4 * 12 + 1


def random_rows() -> Tensor:
    return torch.randn(N, 3, generator=torch.Generator().manual_seed(0))


def distances_to(rows: Tensor, others: Tensor) -> Tensor:
    shape = (rows.shape[0], others.shape[0], rows.shape[1])
    return canonical_distances(
        rows[:, None].expand(shape).contiguous(), others[None].expand(shape).contiguous()
    )


def test_nearest_pivots_are_nearest_and_not_the_node_itself() -> None:
    rows, present = random_rows(), torch.arange(N) % 10 != 3
    wanted = present & (torch.arange(N) < 60)
    found = nearest_pivots(OneProcess(N), rows, present, wanted, num_pivots=3, seed=5)
    assert (found[~wanted] == -1).all()
    pivots = choose_sample(N, PIVOTS, 5)
    pivots = pivots[present[pivots]]
    distances = distances_to(rows, rows[pivots])
    distances[torch.arange(N)[:, None] == pivots] = torch.inf
    assert torch.equal(found[wanted], pivots[distances.argsort(1)[:, :3]][wanted])


def test_mates_share_the_nearest_pivot() -> None:
    rows, present = random_rows(), torch.arange(N) % 10 != 3
    mates = cell_mates(OneProcess(N), rows, present, num_mates=200, seed=5)
    pivots = choose_sample(N, PIVOTS, 5)
    pivots = pivots[present[pivots]]
    cells = distances_to(rows, rows[pivots]).argmin(1)
    for i in range(N):
        mine = {j for j in mates[i].tolist() if j >= 0}
        expected = {
            j for j in range(N) if j != i and present[i] and present[j] and cells[j] == cells[i]
        }
        assert mine == expected


def test_mates_of_a_large_cell_differ_from_node_to_node() -> None:
    # Identical rows are all in the cell of the first pivot.
    mates = cell_mates(
        OneProcess(N), torch.zeros(N, 2), torch.ones(N, dtype=torch.bool), num_mates=7, seed=0
    )
    step = torch.arange(1, 8)
    assert torch.equal(mates, (torch.arange(N)[:, None] + step) % N)


def test_nobody_present_means_no_candidates() -> None:
    rows, none = random_rows(), torch.zeros(N, dtype=torch.bool)
    assert (cell_mates(OneProcess(N), rows, none, num_mates=4, seed=0) == -1).all()
    assert (nearest_pivots(OneProcess(N), rows, none, none, num_pivots=2, seed=0) == -1).all()
