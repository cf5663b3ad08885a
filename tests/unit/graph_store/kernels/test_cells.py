"""Cells and their bounds against all distances, in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.graph_store.kernels.cells import (
    Cells,
    guard,
    lower_bounds,
    make_cells,
)
from labelmesh.graph_store.kernels.knn import make_bank, make_search
from labelmesh.graph_store.kernels.scaling import Scaled
from torch import Tensor


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def integers(high: int, *shape: int) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(1)).float()


ROWS: dict[str, Callable[[], Tensor]] = {
    "random": lambda: randn(500, 6),
    "clusters": lambda: 5 * randn(8, 6).repeat(60, 1) + randn(480, 6),
    "grid": lambda: integers(4, 400, 2),
    "duplicates": lambda: randn(20, 7).repeat(20, 1),
    "all the same": lambda: torch.ones(100, 4),
    "zeros": lambda: torch.zeros(60, 3),
    "huge": lambda: 1e30 * randn(300, 5),
    "tiny": lambda: 1e-30 * randn(300, 5),
    "one outlier": lambda: torch.cat([randn(299, 5), torch.full((1, 5), 1e9)]),
    "far from the origin": lambda: 1e5 + randn(300, 5),
}


def scaled(rows: Tensor) -> Scaled:
    return make_bank(rows, torch.arange(rows.shape[0]), "euclidean").scaled


def keys_to_members(cells: Cells, queries: Tensor) -> Tensor:
    """Smallest half squared distance of each query to the members of each cell."""
    members = cells.rows.rows.double()
    pairs = (queries.double()[:, None] - members[None]).square().sum(-1) / 2
    smallest = torch.full((queries.shape[0], cells.half.shape[0]), torch.inf).double()
    for c in range(cells.half.shape[0]):
        start, stop = cells.starts[c : c + 2].tolist()
        if stop > start:
            smallest[:, c] = pairs[:, start:stop].amin(1)
    return smallest


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("num_cells", [1, 13])
def test_members_are_grouped_and_bounds_hold(name: str, num_cells: int) -> None:
    frame_rows = scaled(ROWS[name]())
    cells = make_cells(frame_rows, num_cells, seed=3)
    assert torch.equal(cells.members.sort().values, torch.arange(frame_rows.rows.shape[0]))
    assert torch.equal(cells.rows.rows, frame_rows.rows[cells.members])
    assert torch.equal(cells.rows.half, frame_rows.half[cells.members])
    assert cells.starts[0] == 0
    assert cells.starts[-1] == frame_rows.rows.shape[0]
    for start, stop in zip(cells.starts.tolist(), cells.starts[1:].tolist()):
        assert (cells.members[start:stop].diff() > 0).all()
    longest = 1.001 * float(frame_rows.rows.norm(dim=1).max())
    slack = guard(frame_rows.rows.shape[1], longest)
    bounds, own = lower_bounds(cells, frame_rows, slack)
    assert torch.equal(own[cells.members].sort().values, own[cells.members])
    assert (bounds.double() <= keys_to_members(cells, frame_rows.rows)).all()


def test_bounds_are_as_large_as_projections_allow() -> None:
    """Two cells on a line: members of the second reach to 3, the first center lies at 0."""
    rows = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [3.0, 0.0], [5.0, 0.0]])
    frame_rows = Scaled(rows, rows.square().sum(1) / 2)
    cells = make_cells(frame_rows, 2, seed=0)
    assert sorted(cells.centers[:, 0].tolist()) == [0.0, 4.0]
    bounds, own = lower_bounds(cells, Scaled(torch.zeros(1, 2), torch.zeros(1)), 0.0)
    other = 1 - int(own[0])
    assert bounds[0, own[0]] == 0
    assert bounds[0, other] == pytest.approx(4.5, rel=1e-5)


def test_bounds_beat_the_half_space_and_the_triangle() -> None:
    rows = torch.cat([randn(400, 8) + 6 * torch.eye(8)[axis] for axis in range(4)])
    frame_rows = Scaled(rows, rows.square().sum(1) / 2)
    cells = make_cells(frame_rows, 4, seed=1)
    bounds, own = lower_bounds(cells, frame_rows, 0.0)
    distances = (2 * bounds).sqrt()
    to_centers = torch.cdist(rows, cells.centers)
    nearest = to_centers.gather(1, own[:, None])
    gaps = torch.cdist(cells.centers, cells.centers)[own]
    half_space = (to_centers.square() - nearest.square()) / (2 * gaps)
    half_space.scatter_(1, own[:, None], 0.0)
    triangle = to_centers - (2 * cells.radii).sqrt()
    assert (distances >= torch.maximum(half_space, triangle) - 1e-3).all()
    assert distances.mean() > 1.2 * half_space.mean()


@settings(deadline=None, max_examples=40)
@given(
    num_rows=st.integers(1, 40),
    num_queries=st.integers(1, 10),
    dim=st.integers(1, 6),
    levels=st.integers(1, 5),
    num_cells=st.integers(1, 50),
    seed=st.integers(0, 10_000),
)
def test_bounds_hold_for_other_queries(
    num_rows: int, num_queries: int, dim: int, levels: int, num_cells: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, levels, (num_rows, dim), generator=generator).float()
    queries = torch.randint(0, 2 * levels, (num_queries, dim), generator=generator).float()
    ids = torch.arange(num_rows)
    task = make_search(make_bank(rows, ids, "euclidean"), queries, 1, None)
    cells = make_cells(task.filter.bank, num_cells, seed)
    slack = guard(dim, task.filter.longest)
    bounds, _ = lower_bounds(cells, task.filter.queries, slack)
    smallest = keys_to_members(cells, task.filter.queries.rows)
    assert (bounds.double() <= smallest).all()


def test_cells_are_the_same_for_any_number_of_threads() -> None:
    frame_rows = scaled(randn(3000, 8))
    before, results = torch.get_num_threads(), []
    for num_threads in (1, 2, 3):
        torch.set_num_threads(num_threads)
        results.append(make_cells(frame_rows, 20, seed=5))
    torch.set_num_threads(before)
    for cells in results[1:]:
        assert torch.equal(cells.members, results[0].members)
        assert torch.equal(cells.reach, results[0].reach)
        assert torch.equal(cells.radii, results[0].radii)


def test_no_rows_and_no_cells() -> None:
    empty = Scaled(torch.zeros(0, 3), torch.zeros(0))
    cells = make_cells(empty, 4)
    assert cells.members.shape == (0,)
    with pytest.raises(ValueError, match="num_cells must be at least 1, got 0"):
        make_cells(empty, 0)
