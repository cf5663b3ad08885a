"""Exact kNN that skips what the bounds of `cells` exclude.

A block of queries, those of one cell, first looks at its own cell, then at the others in the order
of their centers' distances. A query needs another cell if the bound of that cell is below the last
key of its list, and in it the members whose own projection is (the bound of `cells` with the
member's projection in the place of the largest one). Sorted by what they demand and by what they
reach, queries and members of a visit form a staircase, which is multiplied as a few rectangles.

Why results stay exact: a pair is left out only if its true key, whatever the rounding, is at least
the last key of the query's list at that time, or its limit, and the list's last key only falls.
So "no key outside the list is below `bounds`", which the ranking relies on, holds as in a search
of everything. Blocks write to their own lists alone, so threads do not meet.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from . import cells_compiled
from .cells import Cells, assign, guard
from .compiled import task_threads
from .knn_cpu import BANK_BLOCK, PAD, QUERY_BLOCK, Candidates, Found, Range, Search, rank_candidates
from .precision import exact_products
from .scaling import Scaled

# Rows and half their squared lengths.
_Rows = tuple[Tensor, NDArray[np.float32]]

# Queries of one cell must be this many to be a block of their own.
_MIN_BLOCK = 64
# Cells of queries with whose centers a thread multiplies the bank at once.
_CENTERS = 8
# Multiplications that cost as much as starting a product does.
_STARTING = 1 << 21


def search(task: Search, cells: Cells) -> Found:
    """`knn_cpu.search` without the cells that no query needs; `cells` are those of its bank."""
    lists, bounds = preselect(task, cells, task.k + PAD)
    return rank_candidates(task, lists, bounds)


def preselect(
    task: Search, cells: Cells, size: int, limits: Float32[Tensor, " m"] | None = None
) -> tuple[Candidates, Float32[Tensor, " m"]]:
    """Lists of the `size` nearest rows of every query, and keys that no other row falls short of.

    Args:
        cells: Of `task.filter.bank`.
        limits: Keys from which on a query does not ask for rows, if less is known to do. For the
            ranking to be certain, above the key of the k-th distance by more than `guard`.

    Returns:
        Lists for `rank_candidates`, and its `bounds`: a query's limit or, where that is less, the
        last key of its list. The true key of every row outside a list is at least that.
    """
    size = min(size, max(1, task.bank.rows.shape[0]))
    queries = _Queries.of(task, cells)
    num_queries = queries.order.shape[0]
    keys = torch.full((num_queries, size), torch.inf)
    positions = torch.zeros((num_queries, size), dtype=torch.int32)
    bounds = torch.full((num_queries,), torch.inf) if limits is None else limits[queries.order]
    found = _Found(keys, positions, bounds)
    with exact_products(keys.device), task_threads() as run:
        run(partial(_search_blocks, task, cells, queries, found, b) for b in queries.batches())
    back = torch.empty_like(queries.order)
    back[queries.order] = torch.arange(num_queries)
    return Candidates(keys[back], positions[back]), bounds[back]


@dataclass(frozen=True)
class _Queries:
    """Queries ordered by their nearest cell."""

    order: Tensor
    own: Tensor
    rows: Scaled
    ids: Tensor
    starts: list[int]

    @classmethod
    def of(cls, task: Search, cells: Cells) -> _Queries:
        scaled = task.filter.queries
        if scaled is task.filter.bank:
            order = cells.members
            counts = cells.starts.diff()
            own = torch.repeat_interleave(torch.arange(counts.shape[0]), counts)
            rows = cells.rows
        else:
            own = assign(scaled, cells.centers).own
            order = torch.argsort(own, stable=True)
            own = own[order]
            rows = Scaled(scaled.rows[order], scaled.half[order])
        starts = torch.searchsorted(own, torch.arange(cells.half.shape[0] + 1))
        return cls(order, own, rows, task.query_ids[order], starts.tolist())

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Ranges of at most QUERY_BLOCK queries, of one cell where it has enough of them."""
        first = 0
        for start, stop in zip(self.starts, self.starts[1:]):
            if stop - start >= _MIN_BLOCK:
                yield from _pieces(first, start)
                yield from _pieces(start, stop)
                first = stop
        yield from _pieces(first, self.starts[-1])

    def batches(self) -> list[list[Range]]:
        """Blocks of a few cells each, at least one for every thread."""
        blocks = list(self.blocks())
        size = max(1, min(_CENTERS, len(blocks) // (4 * torch.get_num_threads())))
        return [blocks[at : at + size] for at in range(0, len(blocks), size)]


def _pieces(start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Split a range into equal ones of at most QUERY_BLOCK."""
    parts = -(-(stop - start) // QUERY_BLOCK)
    for part in range(parts):
        yield (
            start + (stop - start) * part // parts,
            start + (stop - start) * (part + 1) // parts,
        )


@dataclass(frozen=True)
class _Found:
    """Lists under construction, in the order of `_Queries`."""

    keys: Tensor
    positions: Tensor
    bounds: Tensor


class _Buffers(threading.local):
    """Room of one thread for gathered rows and their products."""

    size = (-1, -1)

    def reserve(self, num_members: int, width: int) -> None:
        """Have room for QUERY_BLOCK queries and for `num_members` rows of this width."""
        if self.size[0] >= num_members and self.size[1] == width:
            return
        self.size = (num_members, width)
        self.queries = torch.empty(QUERY_BLOCK, width)
        self.members = torch.empty(num_members, width)
        self.queries_view, self.members_view = self.queries.numpy(), self.members.numpy()
        self.half_queries = np.empty(QUERY_BLOCK, np.float32)
        self.half_members = np.empty(num_members, np.float32)
        self.products = torch.empty(QUERY_BLOCK * BANK_BLOCK)
        self.picked = np.empty(QUERY_BLOCK, np.int32)
        self.least = np.empty(QUERY_BLOCK, np.float32)
        self.by_least = np.empty(QUERY_BLOCK, np.int32)
        self.wanted = np.empty(num_members, np.int32)
        self.cuts = np.empty((QUERY_BLOCK, 3), np.int32)


_buffers = _Buffers()


class _Visitor:
    """One block of queries on its way through the cells."""

    def __init__(
        self,
        task: Search,
        cells: Cells,
        queries: _Queries,
        found: _Found,
        at: slice,
        products: NDArray[np.float32],
    ):
        """`products` are those of the cells' rows with the first query's center."""
        self.cells, self.products = cells, products
        # Views for the compiled loops: making one costs as much as a small product.
        self.gaps, self.reach = cells.gaps.numpy(), cells.reach.numpy()
        self.bank_rows, self.bank_half = cells.rows.rows.numpy(), cells.rows.half.numpy()
        self.own_products, self.members = cells.own_products.numpy(), cells.members.numpy()
        self.queries = queries.rows.rows[at].numpy()
        self.starts = cells.starts.tolist()
        self.min_saving = _STARTING // max(1, cells.centers.shape[1])
        self.guard = guard(task.bank.rows.shape[1], task.filter.longest)
        self.rows, self.half = queries.rows.rows[at], queries.rows.half[at].numpy()
        self.ids, self.bank_ids = queries.ids[at].numpy(), task.bank.ids.numpy()
        self.own = queries.own[at].numpy()
        self.keys, self.positions = found.keys[at].numpy(), found.positions[at].numpy()
        self.bounds = found.bounds[at].numpy()
        _buffers.reserve(int(cells.starts.diff().max()), self.rows.shape[1])

    def visit_own(self) -> None:
        """Every query looks at all of its own cell."""
        first = 0
        for c in np.unique(self.own).tolist():
            stop = int(np.searchsorted(self.own, c, side="right"))
            start, end = self.starts[c : c + 2]
            queries = np.arange(first, stop, dtype=np.int32)
            members = np.arange(start, end, dtype=np.int32)
            rows = (self.rows[first:stop], self.half[first:stop])
            self._offer(rows, queries, self._rows_of(start, end), members)
            first = stop

    def visit_others(self) -> None:
        products = (self.cells.centers @ self.rows.T).numpy()
        is_uniform = bool(self.own[0] == self.own[-1])
        order = self._order()
        at, buffers = 0, _buffers
        while True:
            at, count = cells_compiled.next_cell(
                order,
                at,
                self.own,
                products,
                self.gaps,
                self.reach,
                self.bounds,
                self.guard,
                buffers.picked,
                buffers.least,
            )
            if count == 0:
                return
            if is_uniform:
                self._visit_part(int(order[at]), count)
            else:
                self._visit_all(int(order[at]), count)
            at += 1

    def _order(self) -> NDArray[np.int64]:
        """Cells by the distance of their centers from the middle of the block."""
        to_middle = torch.linalg.vector_norm(self.cells.centers - self.rows.mean(0), dim=1)
        order: NDArray[np.int64] = to_middle.argsort().numpy()
        return order

    def _visit_all(self, c: int, count: int) -> None:
        """Offer all members of a cell."""
        start, stop = self.starts[c : c + 2]
        queries, buffers = _buffers.picked[:count], _buffers
        out, half = buffers.queries[:count], buffers.half_queries[:count]
        cells_compiled.gather(self.queries, self.half, queries, buffers.queries_view, half)
        members = np.arange(start, stop, dtype=np.int32)
        self._offer((out, half), queries, self._rows_of(start, stop), members)

    def _visit_part(self, c: int, count: int) -> None:
        """Offer the members of a cell that queries of one cell need."""
        start, stop = self.starts[c : c + 2]
        buffers = _buffers
        num_cuts, wanted = cells_compiled.plan_visit(
            buffers.picked[:count],
            buffers.least[:count],
            self.products[start:stop],
            self.own_products[start:stop],
            start,
            self.min_saving,
            buffers.by_least,
            buffers.wanted,
            buffers.cuts,
        )
        if wanted == 0:
            return
        queries, picked = buffers.by_least[:count], buffers.wanted[:wanted]
        rows, half = buffers.queries[:count], buffers.half_queries[:count]
        others, half_others = buffers.members[:wanted], buffers.half_members[:wanted]
        cells_compiled.gather(self.queries, self.half, queries, buffers.queries_view, half)
        cells_compiled.gather(
            self.bank_rows,
            self.bank_half,
            picked,
            buffers.members_view,
            half_others,
        )
        for first, last, needed in buffers.cuts[:num_cuts].tolist():
            if needed:
                part = slice(first, last)
                wanted_rows = (others[:needed], half_others[:needed])
                self._offer((rows[part], half[part]), queries[part], wanted_rows, picked[:needed])

    def _rows_of(self, start: int, stop: int) -> _Rows:
        return self.cells.rows.rows[start:stop], self.bank_half[start:stop]

    def _offer(
        self,
        rows: _Rows,
        queries: NDArray[np.int32],
        others: _Rows,
        members: NDArray[np.int32],
    ) -> None:
        """Multiply some queries with some members, and offer these to the lists."""
        num_members = members.shape[0]
        for start in range(0, num_members, BANK_BLOCK):
            part = slice(start, min(start + BANK_BLOCK, num_members))
            shape = (queries.shape[0], part.stop - start)
            out = _buffers.products[: shape[0] * shape[1]].view(shape)
            cells_compiled.filter_picked(
                torch.mm(rows[0], others[0][part].T, out=out).numpy(),
                queries,
                members[part],
                rows[1],
                others[1][part],
                self.members,
                self.ids,
                self.bank_ids,
                self.keys,
                self.positions,
                self.bounds,
            )


def _search_blocks(
    task: Search, cells: Cells, queries: _Queries, found: _Found, blocks: list[Range]
) -> None:
    """Search for some blocks of queries, one after the other."""
    own = queries.own[[start for start, _ in blocks]]
    products = (cells.centers[own] @ cells.rows.rows.T).numpy()
    for row, (start, stop) in zip(products, blocks):
        visitor = _Visitor(task, cells, queries, found, slice(start, stop), row)
        visitor.visit_own()
        visitor.visit_others()
