"""Cells: groups of near rows with bounds that let an exact search skip a whole group.

A cell c has a center m_c. Beside the triangle inequality, |x - y| >= |x - m_c| - |y - m_c|, there
is a bound for every other center m_b: with w = m_b - m_c, by Cauchy and Schwarz,

    |x - y| |w|  >=  (x - y) w  =  (x m_b - x m_c) - (y m_b - y m_c),

and the members y of c enter through their largest projection `reach[b, c]` alone. The half-space
between m_b and m_c, which is the same bound with the projection of the midpoint, is never larger
while members are nearest to their own center, and often much smaller, as members seldom reach the
border. This bound needs no nearest assignment at all: it holds for whatever the members are.

All values are float32 and of rows in the frame of `scaling`, whose errors `guard` covers: with
centers not longer than the longest row, N, a product is off by at most D u N^2, a key by `guard` =
2 (D + 16) u N^2 and a difference of two projections, four products, by 2 `guard`. Bounds are
lowered by that, so they hold for the rows as stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from . import cells_compiled
from .compiled import Task, task_threads
from .precision import exact_products
from .scaling import UNIT_ROUNDOFF, Scaled

# Rows whose products with the centers are made at once: as many numbers as fit in a cache.
_PRODUCTS = 1 << 19
# Rows per center from which centers are learned, and how often they are moved.
_SAMPLE = 24
_STEPS = 4
# Distances between centers are rounded up by this, and not 0.
_ROUND_UP, _TINY = 1 + 1e-6, 1e-30


@dataclass(frozen=True)
class Cells:
    """Rows of a bank grouped by cell: those of cell c are starts[c]:starts[c + 1] of `members`.

    Attributes:
        centers: In the bank's frame; `half` is |center|^2 / 2.
        members: Positions in the bank.
        rows: The members' rows, in the order of `members`.
        own_products: Products of the members with their cell's center.
        gaps: Distance between two centers, rounded up.
        reach: Row b, column c: the largest y m_b - y m_c of the members y of c; -inf without any.
        radii: Key (half squared distance) of the farthest member from its center.
    """

    centers: Float32[Tensor, "C D"]
    half: Float32[Tensor, " C"]
    starts: Int64[Tensor, " C+1"]
    members: Int64[Tensor, " n"]
    rows: Scaled
    own_products: Float32[Tensor, " n"]
    gaps: Float32[Tensor, "C C"]
    reach: Float32[Tensor, "C C"]
    radii: Float32[Tensor, " C"]


def guard(width: int, longest: float) -> float:
    """How far keys of rows of at most this length can be off; see the module's docstring."""
    return 2 * (width + 16) * UNIT_ROUNDOFF[torch.float32] * longest**2


def make_cells(scaled: Scaled, num_cells: int, seed: int = 0) -> Cells:
    """Group rows around `num_cells` centers that a seeded sample of them gives.

    Args:
        scaled: Rows in a frame for distances (with `half`); not for inner products.
        num_cells: At least 1; not more than rows are used. Cells can stay empty.

    Cost:
        n C D multiplications, a copy of the rows and 8 C^2 bytes.
    """
    centers = make_centers(scaled, num_cells, seed)
    return group_rows(scaled, centers)


def make_centers(scaled: Scaled, num_cells: int, seed: int = 0) -> Float32[Tensor, "C D"]:
    """Centers by a few steps of k-means (Lloyd 1982) on a sample."""
    if num_cells < 1:
        raise ValueError(f"num_cells must be at least 1, got {num_cells}")
    num_rows = scaled.rows.shape[0]
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randperm(num_rows, generator=generator)[: _SAMPLE * num_cells]
    sample = Scaled(scaled.rows[picked], scaled.half[picked])
    centers = sample.rows[:num_cells].clone()
    if num_rows == 0:
        return torch.zeros(1, scaled.rows.shape[1])
    for _ in range(_STEPS):
        own = assign(sample, centers).own
        # A product with indicators: `index_add_` takes ten times as long.
        is_member = torch.eq(torch.arange(centers.shape[0])[:, None], own).to(centers.dtype)
        counts = is_member.sum(1, keepdim=True)
        means = is_member @ sample.rows / counts.clamp(min=1)
        centers = torch.where(counts > 0, means, centers)
    return centers


def group_rows(scaled: Scaled, centers: Float32[Tensor, "C D"]) -> Cells:
    """The cells of some centers, each row in that of its nearest."""
    assigned = assign(scaled, centers)
    members = torch.argsort(assigned.own, stable=True)
    counts = torch.bincount(assigned.own, minlength=centers.shape[0])
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    rows = Scaled(scaled.rows[members], scaled.half[members])
    gaps = torch.stack([torch.linalg.vector_norm(centers - center, dim=1) for center in centers])
    gaps = (gaps * _ROUND_UP).clamp(min=_TINY)
    return Cells(
        centers=centers,
        half=_half(centers),
        starts=starts,
        members=members,
        rows=rows,
        own_products=assigned.products[members],
        gaps=gaps,
        reach=assigned.reach,
        radii=assigned.radii,
    )


@dataclass(frozen=True)
class Assigned:
    """Each row's nearest center, its product with that, and what of `Cells` comes with it."""

    own: Int64[Tensor, " n"]
    products: Float32[Tensor, " n"]
    reach: Float32[Tensor, "C C"]
    radii: Float32[Tensor, " C"]


def assign(scaled: Scaled, centers: Float32[Tensor, "C D"]) -> Assigned:
    """Find the nearest center of every row."""
    num_rows, num_cells = scaled.rows.shape[0], centers.shape[0]
    own, half = torch.zeros(num_rows, dtype=torch.int64), _half(centers)
    products = torch.zeros(num_rows)
    parts = torch.get_num_threads()
    radii = torch.zeros(parts, num_cells)
    reach = torch.full((parts, num_cells, num_cells), -torch.inf)

    def part(at: int) -> None:
        for start, stop in _blocks(num_rows * at // parts, num_rows * (at + 1) // parts, num_cells):
            cells_compiled.assign(
                (scaled.rows[start:stop] @ centers.T).numpy(),
                scaled.half[start:stop].numpy(),
                half.numpy(),
                own[start:stop].numpy(),
                products[start:stop].numpy(),
                radii[at].numpy(),
                reach[at].numpy(),
            )

    with exact_products(centers.device), task_threads() as run:
        run(partial(part, at) for at in range(parts))
    return Assigned(own, products, reach.amax(0).T.contiguous(), radii.amax(0))


def lower_bounds(
    cells: Cells, queries: Scaled, guard: float
) -> tuple[Float32[Tensor, "m C"], Int64[Tensor, " m"]]:
    """Keys that no member of a cell falls short of, and the nearest center of every query.

    Args:
        queries: In the frame of the cells.
        guard: For the longest of the queries and of the rows.
    """
    own = assign(queries, cells.centers).own
    bounds = torch.empty(queries.rows.shape[0], cells.half.shape[0])

    def block(start: int, stop: int) -> None:
        cells_compiled.lower_bounds(
            (queries.rows[start:stop] @ cells.centers.T).numpy(),
            queries.half[start:stop].numpy(),
            cells.half.numpy(),
            own[start:stop].numpy(),
            cells.gaps.numpy(),
            cells.reach.numpy(),
            cells.radii.numpy(),
            guard,
            bounds[start:stop].numpy(),
        )

    def tasks() -> Iterator[Task]:
        for start, stop in _blocks(0, bounds.shape[0], bounds.shape[1]):
            yield partial(block, start, stop)

    with exact_products(bounds.device), task_threads() as run:
        run(tasks())
    return bounds, own


def _half(centers: Float32[Tensor, "C D"]) -> Float32[Tensor, " C"]:
    half: Tensor = torch.linalg.vector_norm(centers, dim=1).square().div(2)
    return half


def _blocks(first: int, last: int, num_cells: int) -> Iterator[tuple[int, int]]:
    size = max(1, _PRODUCTS // max(1, num_cells))
    return ((start, min(start + size, last)) for start in range(first, last, size))
