"""Rounds of neighbour-of-neighbour refinement: the local join of NN-descent.

Dong, Charikar, Li, "Efficient k-nearest neighbor graph construction for generic similarity
measures", WWW 2011, algorithm 2: a neighbour of a neighbour is likely a neighbour, and a pair needs
to be looked at only when one of its two edges is new. Departures: they join around each node and
write to both ends; here every node collects its own candidates (u - v - w over edges in either
direction) and writes to its own list alone. That costs each distance twice, but threads and shards
cannot be seen in the result: candidates come from the graph as it was when the round began, lists
are the nearest by (canonical distance, id), and the reverse edges that are kept where a node has
too many are drawn by a hash of the edge. All new edges take part instead of a random share of them.

Shape letters: n own nodes, D width of rows, k list length, R reverse neighbours, A = k + R.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float32, Float64, Int64, Shaped
from torch import Tensor

from .exchange import Exchange
from .kernels import refine_compiled
from .kernels.compiled import task_threads

# Candidates that are held at once, and rows of one task.
_ROOM = 1 << 22
_TASK_ROWS = 256

Range = tuple[int, int]


@dataclass(frozen=True)
class Lists:
    """Own lists, ordered by (distance, id), -1/inf where shorter; changed in place.

    Attributes:
        is_new: Whether an entry has not taken part in a join yet.
    """

    ids: Int64[Tensor, "n k"]
    distances: Float64[Tensor, "n k"]
    is_new: Bool[Tensor, "n k"]


@dataclass(frozen=True)
class Work:
    """What was done by one pass over all shards: lists changed, candidates looked at."""

    num_changed: int
    num_candidates: int


def empty_lists(num_rows: int, k: int) -> Lists:
    return Lists(
        torch.full((num_rows, k), -1),
        torch.full((num_rows, k), torch.inf, dtype=torch.float64),
        torch.zeros(num_rows, k, dtype=torch.bool),
    )


def offer_candidates(
    exchange: Exchange,
    rows: Float32[Tensor, "n D"],
    lists: Lists,
    candidates: Int64[Tensor, "n c"],
    *,
    is_product: bool = False,
) -> Work:
    """Put candidates (-1 = none; repetitions are allowed) into the own lists. Collective."""
    width = candidates.shape[1]
    counts = torch.full((rows.shape[0],), width)
    num_changed = 0
    with task_threads() as run:
        for first, last in _blocks(exchange, rows.shape[0], width):
            own = slice(first, last)
            num_changed += _offer_block(
                exchange, rows, lists, (first, last), candidates[own], counts[own], is_product, run
            )
    num_candidates = int((candidates >= 0).sum())
    return Work(exchange.total(num_changed), exchange.total(num_candidates))


def values_at(
    exchange: Exchange,
    column: Shaped[Tensor, " n"],
    ids: Int64[Tensor, "m c"],
    *,
    missing: int | bool,
) -> Shaped[Tensor, "m c"]:
    """The column's value at every id, `missing` at id -1. Collective."""
    (table,), places = exchange.fetch([column], ids.reshape(-1))
    # Place -1 is the last one.
    return torch.cat([table, table.new_full((1,), missing)])[places].reshape(ids.shape)


def join_round(
    exchange: Exchange,
    rows: Float32[Tensor, "n D"],
    lists: Lists,
    loosened: Bool[Tensor, " n"],
    *,
    num_reverse: int,
    seed: int,
    is_product: bool = False,
) -> Work:
    """One local join. Collective.

    Args:
        loosened: Own nodes whose neighbours went farther away: what their lists had no room for may
            now have, so they look through old edges too.

    Cost:
        Per node at most (k + R)^2 candidates, fewer the fewer entries are new. Messages: every edge
        once, the neighbours of neighbours' lists, and every candidate's row once per block.
    """
    around, num_new = _adjacency(exchange, lists, num_reverse, seed)
    num_through = torch.where(loosened, around.shape[1], num_new)
    lists.is_new.zero_()
    room = around.shape[1] ** 2
    num_changed = num_candidates = 0
    blocks = list(_blocks(exchange, rows.shape[0], room))
    size = max((last - first for first, last in blocks), default=0)
    buffer = torch.empty(size, room, dtype=torch.int64)
    with task_threads() as run:
        for first, last in blocks:
            candidates = buffer[: last - first]
            counts = _collect_block(
                exchange, lists, around, num_new, num_through, (first, last), candidates, run
            )
            num_candidates += int(counts.sum())
            num_changed += _offer_block(
                exchange, rows, lists, (first, last), candidates, counts, is_product, run
            )
    return Work(exchange.total(num_changed), exchange.total(num_candidates))


def _adjacency(
    exchange: Exchange, lists: Lists, num_reverse: int, seed: int
) -> tuple[Int64[Tensor, "n A"], Int64[Tensor, " n"]]:
    """Neighbours in both directions, new ones first, and how many are new."""
    num_rows, k = lists.ids.shape
    edges = torch.empty(int((lists.ids >= 0).sum()), 4, dtype=torch.int64)
    refine_compiled.list_edges(
        exchange.start, lists.ids.numpy(), lists.is_new.numpy(), seed, edges.numpy()
    )
    edges = exchange.send(edges, edges[:, 0].contiguous())
    sources = torch.full((num_rows, num_reverse), -1)
    priorities = torch.zeros(num_rows, num_reverse, dtype=torch.int64)
    reverse_new = torch.zeros(num_rows, num_reverse, dtype=torch.bool)
    around = torch.empty(num_rows, k + num_reverse, dtype=torch.int64)
    num_new = torch.empty(num_rows, dtype=torch.int64)

    def fill(first: int, last: int) -> None:
        own = slice(first, last)
        refine_compiled.keep_reverse(
            edges.numpy(),
            exchange.start + first,
            exchange.start + last,
            exchange.start,
            sources.numpy(),
            priorities.numpy(),
            reverse_new.numpy(),
        )
        refine_compiled.merge_directions(
            lists.ids[own].numpy(),
            lists.is_new[own].numpy(),
            sources[own].numpy(),
            reverse_new[own].numpy(),
            around[own].numpy(),
            num_new[own].numpy(),
        )

    # Every task reads all edges, so there are only as many as threads.
    size = max(1, -(-num_rows // torch.get_num_threads()))
    with task_threads() as run:
        run(partial(fill, *part) for part in _ranges(num_rows, size))
    return around, num_new


def _collect_block(
    exchange: Exchange,
    lists: Lists,
    around: Int64[Tensor, "n A"],
    num_new: Int64[Tensor, " n"],
    num_through: Int64[Tensor, " n"],
    block: Range,
    candidates: Int64[Tensor, "b room"],
    run: Callable[..., None],
) -> Int64[Tensor, " b"]:
    """Candidates of the block's nodes, and how many each has.

    A node sees all neighbours of its first `num_through` neighbours, and those of the others that
    are new to them.
    """
    first, last = block
    own, own_through = around[first:last], num_through[first:last]
    counts = torch.empty(last - first, dtype=torch.int64)
    # Old neighbours without any new edge lead nowhere, so their lists need not travel.
    is_through = torch.arange(own.shape[1]) < own_through[:, None]
    is_needed = is_through | (values_at(exchange, num_new, own, missing=0) > 0)
    wanted = torch.where(is_needed, own, -1)
    tables, places = exchange.fetch([around, num_new], wanted.reshape(-1))
    at = places.reshape(own.shape)

    def collect(start: int, stop: int) -> None:
        part = slice(start, stop)
        refine_compiled.collect(
            exchange.start + first + start,
            lists.ids[first:last][part].numpy(),
            own[part].numpy(),
            own_through[part].numpy(),
            at[part].numpy(),
            tables[0].numpy(),
            tables[1].numpy(),
            candidates[part].numpy(),
            counts[part].numpy(),
        )

    run(partial(collect, *part) for part in _ranges(last - first, _TASK_ROWS))
    return counts


def _offer_block(
    exchange: Exchange,
    rows: Float32[Tensor, "n D"],
    lists: Lists,
    block: Range,
    candidates: Int64[Tensor, "b c"],
    counts: Int64[Tensor, " b"],
    is_product: bool,
    run: Callable[..., None],
) -> int:
    """Rank the block's candidates; how many of its lists changed."""
    first, last = block
    table, places = exchange.fetch_filled(rows, candidates, counts)
    is_changed = torch.zeros(last - first, dtype=torch.bool)

    def offer(start: int, stop: int) -> None:
        part, own = slice(start, stop), slice(first + start, first + stop)
        refine_compiled.offer(
            exchange.start + first + start,
            rows[own].numpy(),
            table.numpy(),
            candidates[part].numpy(),
            places[part].numpy(),
            counts[part].numpy(),
            is_product,
            lists.ids[own].numpy(),
            lists.distances[own].numpy(),
            lists.is_new[own].numpy(),
            is_changed[part].numpy(),
        )

    run(partial(offer, *part) for part in _ranges(last - first, _TASK_ROWS))
    return int(is_changed.sum())


def _blocks(exchange: Exchange, num_rows: int, room: int) -> Iterator[Range]:
    """Ranges of own rows with at most `_ROOM` candidates; as many on every shard."""
    size = max(1, _ROOM // max(1, room))
    for block in range(-(-exchange.most(num_rows) // size)):
        yield min(block * size, num_rows), min((block + 1) * size, num_rows)


def _ranges(num_rows: int, size: int) -> list[Range]:
    return [(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]
