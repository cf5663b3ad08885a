"""Exact kNN on the CPU: torch multiplies blocks, compiled loops look at the products.

After the first blocks almost no product is nearer than a query's list, so a block costs one
vectorised comparison per product. In a self-join each pair of blocks is multiplied once and serves
the lists of both. Threads work on different blocks; what is preselected does not affect results.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int32, Int64
from numpy.typing import NDArray
from torch import Tensor

from . import knn_compiled
from .compiled import Task, task_threads
from .precision import exact_products
from .scaling import Bank, Filter

# 512 x 1024 products stay in a core's cache between the multiplication and the comparison.
QUERY_BLOCK = 512
BANK_BLOCK = 1024
# Candidates beyond k: with fewer, more queries must be searched again; with more, lists are slower.
PAD = 8

Found = tuple[Int64[Tensor, "m k"], Float64[Tensor, "m k"]]
Range = tuple[int, int]
Run = Callable[[Iterable[Task]], None]


@dataclass(frozen=True)
class Search:
    """Queries as stored, the bank, and both as the filter sees them."""

    queries: Float32[Tensor, "m D"]
    query_ids: Int64[Tensor, " m"]
    bank: Bank
    filter: Filter
    k: int


@dataclass(frozen=True)
class Candidates:
    """Lists as in `knn_compiled`."""

    keys: Float32[Tensor, "m K"]
    positions: Int32[Tensor, "m K"]


def search(task: Search) -> Found:
    """The k nearest of every query by (canonical distance, id); -1/inf where there are fewer."""
    lists = preselect(task)
    return rank_candidates(task, lists, lists.keys[:, -1])


def preselect(task: Search) -> Candidates:
    """Lists of the k + PAD nearest rows of every query, as far as float32 can tell."""
    lists = _empty_lists(task)
    num_queries = task.queries.shape[0]
    # Blocks small enough that every thread gets one.
    size = max(1, min(QUERY_BLOCK, -(-num_queries // torch.get_num_threads())))
    with exact_products(task.queries.device), task_threads() as run:
        run(partial(_offer_bank, task, lists, block) for block in _ranges(num_queries, size))
    return lists


def self_join(task: Search) -> Found:
    """`search` of a bank in itself: the queries are the bank, with the same ids."""
    with exact_products(task.queries.device), task_threads() as run:
        lists = _preselect_self(task, run)
        return _rank(task, lists, lists.keys[:, -1], run)


def preselect_self(task: Search) -> Candidates:
    """Of `self_join`, what the filter leaves: the k + `PAD` candidates of least key per row.

    No key of a pair that is not listed is below the last key of the row's list.
    """
    with exact_products(task.queries.device), task_threads() as run:
        return _preselect_self(task, run)


def _preselect_self(task: Search, run: Run) -> Candidates:
    lists = _empty_lists(task)
    num_rows = task.bank.rows.shape[0]
    if num_rows <= 4 * QUERY_BLOCK:
        blocks = _ranges(num_rows, max(1, min(QUERY_BLOCK, -(-num_rows // 2))))
        run(partial(_offer_bank, task, lists, block) for block in blocks)
        return lists
    blocks = _ranges(num_rows, QUERY_BLOCK)
    run(partial(_offer_bank, task, lists, block, block) for block in blocks)
    # Pairs of a round share no block, so no two threads write to the same lists.
    for pairs in _tournament(len(blocks)):
        run(partial(_offer_both, task, lists, blocks[i], blocks[j]) for i, j in pairs)
    return lists


def rank_candidates(task: Search, lists: Candidates, bounds: Float32[Tensor, " m"]) -> Found:
    """`search` among candidates that something else has preselected.

    Args:
        lists: Keys may be in any order, and are inf where there is no candidate.
        bounds: No key outside a query's list is below this; inf where the list has everything.
    """
    with exact_products(task.queries.device), task_threads() as run:
        return _rank(task, lists, bounds, run)


def _offer_bank(
    task: Search, lists: Candidates, rows: Range, bank_rows: Range | None = None
) -> None:
    """Preselect for one block of queries among the bank or a range of it."""
    own, bank = slice(*rows), task.filter.bank
    first, last = bank_rows or (0, bank.rows.shape[0])
    for start in range(first, last, BANK_BLOCK):
        other = slice(start, min(start + BANK_BLOCK, last))
        knn_compiled.filter_rows(
            products(task.filter.queries.rows[own], bank.rows[other]),
            task.filter.queries.half[own].numpy(),
            bank.half[other].numpy(),
            lists.keys[own].numpy(),
            lists.positions[own].numpy(),
            start,
            task.query_ids[own].numpy(),
            task.bank.ids[other].numpy(),
        )


def _offer_both(task: Search, lists: Candidates, rows: Range, cols: Range) -> None:
    """Preselect for two blocks of a self-join among each other."""
    a, b, bank = slice(*rows), slice(*cols), task.filter.bank
    knn_compiled.filter_both(
        products(bank.rows[a], bank.rows[b]),
        bank.half[a].numpy(),
        bank.half[b].numpy(),
        lists.keys[a].numpy(),
        lists.positions[a].numpy(),
        lists.keys[b].numpy(),
        lists.positions[b].numpy(),
        np.arange(*rows, dtype=np.int32),
        np.arange(*cols, dtype=np.int32),
    )


def _rank(task: Search, lists: Candidates, bounds: Float32[Tensor, " m"], run: Run) -> Found:
    """Rank the candidates canonically; search again where the filter may have missed a row."""
    num_queries = task.queries.shape[0]
    ids = torch.full((num_queries, task.k), -1)
    distances = torch.full((num_queries, task.k), torch.inf, dtype=torch.float64)
    blocks = _ranges(num_queries, QUERY_BLOCK)
    run(partial(_rerank, task, lists, block, ids, distances) for block in blocks)
    certain = task.filter.certain(distances[:, -1], bounds)
    again = (~certain).nonzero()[:, 0]
    parts = torch.split(again, QUERY_BLOCK)
    run(partial(_search_again, task, part, ids, distances) for part in parts if part.numel())
    return ids, distances


def _rerank(task: Search, lists: Candidates, rows: Range, ids: Tensor, distances: Tensor) -> None:
    own = slice(*rows)
    knn_compiled.rerank(
        task.queries[own].numpy(),
        task.bank.rows.numpy(),
        task.bank.ids.numpy(),
        lists.keys[own].numpy(),
        lists.positions[own].numpy(),
        task.filter.frame.is_product,
        ids[own].numpy(),
        distances[own].numpy(),
    )


def _search_again(task: Search, again: Tensor, ids: Tensor, distances: Tensor) -> None:
    """Rank what a float64 filter cannot exclude, given the k-th distance found so far."""
    limits = task.filter.limits(distances[again, -1])
    found = (torch.full((again.shape[0], task.k), -1), torch.full_like(distances[again], torch.inf))
    queries = task.filter.frame.apply(task.queries[again], torch.float64)
    for start, stop in _ranges(task.bank.rows.shape[0], BANK_BLOCK):
        other = slice(start, stop)
        bank = task.filter.frame.apply(task.bank.rows[other], torch.float64)
        knn_compiled.rank_within(
            (queries.rows @ bank.rows.T).numpy(),
            queries.half.numpy(),
            bank.half.numpy(),
            limits.numpy(),
            task.queries[again].numpy(),
            task.bank.rows[other].numpy(),
            task.query_ids[again].numpy(),
            task.bank.ids[other].numpy(),
            task.filter.frame.is_product,
            found[0].numpy(),
            found[1].numpy(),
        )
    ids[again], distances[again] = found


_buffers = threading.local()


def products(a: Float32[Tensor, "p D"], b: Float32[Tensor, "q D"]) -> NDArray[np.float32]:
    """a b^T in a buffer of this thread: fresh pages would cost as much as the comparison."""
    size = a.shape[0] * b.shape[0]
    if getattr(_buffers, "products", None) is None or _buffers.products.numel() < size:
        _buffers.products = torch.empty(max(size, QUERY_BLOCK * BANK_BLOCK))
    out = _buffers.products[:size].view(a.shape[0], b.shape[0])
    return torch.mm(a, b.T, out=out).numpy()


def _empty_lists(task: Search) -> Candidates:
    size = min(task.k + PAD, max(1, task.bank.rows.shape[0]))
    shape = (task.queries.shape[0], size)
    return Candidates(torch.full(shape, torch.inf), torch.zeros(shape, dtype=torch.int32))


def _ranges(num_rows: int, size: int) -> list[Range]:
    return [(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def _tournament(num_blocks: int) -> Iterator[list[tuple[int, int]]]:
    """Rounds of disjoint pairs in which every two blocks meet once (the circle method)."""
    seats = list(range(num_blocks + num_blocks % 2))
    half = len(seats) // 2
    for _ in range(len(seats) - 1):
        pairs = zip(seats[:half], reversed(seats[half:]))
        yield [(min(pair), max(pair)) for pair in pairs if max(pair) < num_blocks]
        seats.insert(1, seats.pop())
