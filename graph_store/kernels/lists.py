"""Operations on neighbour lists with a horizon (`list_types`): compiled on the CPU, else in torch.

On the CPU torch multiplies blocks of rows and compiled loops look at the products, with a thread
per core; rows of a lower precision are widened first. On other devices: `lists_device`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from . import knn_cells, knn_compiled, knn_cpu, lists_compiled, lists_device
from .cells_choice import choose_cells
from .compiled import task_threads
from .knn_cpu import BANK_BLOCK, PAD, QUERY_BLOCK, Search
from .list_types import (
    Framed,
    Hits,
    Lists,
    Partial,
    Ranking,
    empty_lists,
    empty_partial,
    finish,
)
from .precision import exact_products
from .scaling import Bank, Frame, Scaled

__all__ = [
    "Framed",
    "Hits",
    "Lists",
    "Partial",
    "Ranking",
    "admit",
    "differing_rows",
    "drift_of",
    "drop_members",
    "empty_lists",
    "empty_partial",
    "finish",
    "merge_partial",
    "rank_hits",
    "rank_lists",
    "scan",
    "scan_both",
    "search_self",
    "touched_rows",
]


def is_compiled(x: Tensor) -> bool:
    """Whether the compiled loops can work on a tensor."""
    return x.device.type == "cpu"


def search_self(framed: Framed, size: int) -> Partial:
    """Nearest references of every row among the rows themselves, `size` + 1 of them.

    Rows without part (half = inf) must have been left out. No key of a pair that is not found is
    below the last key of the row, also where cells are skipped.
    """
    if not is_compiled(framed.half):
        return lists_device.search_self(framed, size)
    framed = framed.widen()
    places = torch.arange(framed.rows.shape[0], device=framed.rows.device)
    frame = Frame(1.0, None, is_product=False)
    scaled = Scaled(framed.rows, framed.half)
    bank = Bank(framed.rows, places, frame, scaled, largest=torch.inf, longest=1.0)
    task = Search(framed.rows, places, bank, bank.filter(framed.rows)[1], size + 1 - PAD)
    cells = choose_cells(task)
    if cells is None:
        found = knn_cpu.preselect_self(task)
    else:
        found = knn_cells.preselect(task, cells, size + 1)[0]
    nodes = framed.ids[found.positions.to(torch.int64)]
    out = empty_partial(len(places), size, framed.rows.device)
    width = found.keys.shape[1]
    out.keys[:, :width] = found.keys
    out.nodes[:, :width] = torch.where(torch.isinf(found.keys), -1, nodes)
    return out


def scan(
    queries: Framed, bank: Framed, found: Partial, limits: Float32[Tensor, " n"] | None
) -> Hits:
    """Offer the bank to the lists of queries, and name the rows that have a query within reach.

    Args:
        found: Lists of the queries; written in place. A node is not offered to itself.
        limits: Keys below which a query is a hit of a bank row, -inf for never; None: of no row.

    Returns:
        Hits; `rows` are positions in the bank.
    """
    if not is_compiled(queries.half):
        return lists_device.scan(queries, bank, found, limits)
    queries, bank = queries.widen(), bank.widen()
    if limits is None:
        limits = torch.full_like(bank.half, -torch.inf)
    open_rows = torch.isfinite(bank.half).logical_and(limits > -torch.inf)
    gaps = torch.where(open_rows, bank.half - limits, torch.inf)
    num_queries = queries.rows.shape[0]
    parts: list[list[tuple[np.ndarray[tuple[int], np.dtype[np.generic]], ...]]] = []
    threads = torch.get_num_threads()
    rounds = max(1, -(-num_queries // (threads * QUERY_BLOCK)))
    size = max(1, -(-num_queries // (threads * rounds)))  # as many blocks for each thread
    with exact_products(queries.rows.device), task_threads() as run:
        tasks = []
        for start in range(0, num_queries, size):
            parts.append([])
            own = slice(start, min(start + size, num_queries))
            tasks.append(partial(_scan_block, queries, bank, found, gaps, own, parts[-1]))
        run(tasks)
    columns = list(zip(*(hits for part in parts for hits in part)))
    if not columns:
        none = torch.empty(0, dtype=torch.int32)
        return Hits(none, none, torch.empty(0))
    rows, nodes, keys = (torch.from_numpy(np.concatenate(column)) for column in columns)
    return Hits(rows, nodes, keys)


_buffers = threading.local()


def _scan_block(
    queries: Framed,
    bank: Framed,
    found: Partial,
    gaps: Float32[Tensor, " n"],
    own: slice,
    out: list[tuple[np.ndarray[tuple[int], np.dtype[np.generic]], ...]],
) -> None:
    num_rows = bank.rows.shape[0]
    capacity = QUERY_BLOCK * BANK_BLOCK
    if getattr(_buffers, "hits", None) is None:
        _buffers.hits = (
            np.empty(capacity, np.int32),
            np.empty(capacity, np.int32),
            np.empty(capacity, np.float32),
        )
    hit_rows, hit_nodes, hit_keys = _buffers.hits
    a = queries.rows[own]
    for start in range(0, num_rows, BANK_BLOCK):
        other = slice(start, min(start + BANK_BLOCK, num_rows))
        count = lists_compiled.scan_rows(
            knn_cpu.products(a, bank.rows[other]),
            queries.half[own].numpy(),
            bank.half[other].numpy(),
            gaps[other].numpy(),
            found.keys[own].numpy(),
            found.nodes[own].numpy(),
            queries.ids[own].numpy(),
            bank.ids[other].numpy(),
            hit_rows,
            hit_nodes,
            hit_keys,
            start,
        )
        if count:
            out.append(tuple(column[:count].copy() for column in _buffers.hits))


def scan_both(a: Framed, lists_a: Partial, b: Framed, lists_b: Partial) -> None:
    """Offer every row of either side to the lists of the other; no node may be on both sides."""
    if not is_compiled(a.half):
        lists_device.scan_both(a, lists_a, b, lists_b)
        return
    a, b = a.widen(), b.widen()
    blocks_a = [slice(s, s + QUERY_BLOCK) for s in range(0, a.rows.shape[0], QUERY_BLOCK)]
    blocks_b = [slice(s, s + QUERY_BLOCK) for s in range(0, b.rows.shape[0], QUERY_BLOCK)]
    count = max(len(blocks_a), len(blocks_b))
    with exact_products(a.rows.device), task_threads() as run:
        # The pairs of a round share no block, so no two threads write to the same lists.
        for shift in range(count if blocks_a and blocks_b else 0):
            pairs = ((i, (i + shift) % count) for i in range(len(blocks_a)))
            run(
                partial(_scan_pair, a, lists_a, blocks_a[i], b, lists_b, blocks_b[j])
                for i, j in pairs
                if j < len(blocks_b)
            )


def _scan_pair(
    a: Framed, lists_a: Partial, rows: slice, b: Framed, lists_b: Partial, cols: slice
) -> None:
    knn_compiled.filter_both(
        knn_cpu.products(a.rows[rows], b.rows[cols]),
        a.half[rows].numpy(),
        b.half[cols].numpy(),
        lists_a.keys[rows].numpy(),
        lists_a.nodes[rows].numpy(),
        lists_b.keys[cols].numpy(),
        lists_b.nodes[cols].numpy(),
        a.ids[rows].numpy(),
        b.ids[cols].numpy(),
    )


def merge_partial(lists: Partial, other: Partial) -> None:
    """Put the members of other lists of the same rows into the lists; no node may be in both."""
    if not is_compiled(lists.keys):
        lists_device.merge_partial(lists, other)
        return
    keys, nodes = lists.keys.numpy(), lists.nodes.numpy()
    new_keys, new_nodes = other.keys.numpy(), other.nodes.numpy()
    _run(
        len(keys),
        lambda s: lists_compiled.merge_partial(keys[s], nodes[s], new_keys[s], new_nodes[s]),
    )


def differing_rows(a: Float32[Tensor, "n D"], b: Float32[Tensor, "n D"]) -> Bool[Tensor, " n"]:
    """Rows in which two arrays differ."""
    if not is_compiled(a):
        return lists_device.differing_rows(a, b)
    out = torch.zeros(a.shape[0], dtype=torch.bool)
    first, second, flags = a.numpy(), b.numpy(), out.numpy()
    _run(len(out), lambda s: lists_compiled.differing_rows(first[s], second[s], flags[s]))
    return out


def touched_rows(lists: Lists, is_changed: Bool[Tensor, " N"]) -> Bool[Tensor, " n"]:
    """Rows with a changed node in their list."""
    if not is_compiled(lists.ids):
        return lists_device.touched_rows(lists, is_changed)
    touched = torch.zeros(lists.ids.shape[0], dtype=torch.bool)
    ids, out, flags = lists.ids.numpy(), touched.numpy(), is_changed.numpy()
    _run(len(touched), lambda s: lists_compiled.find_touched(ids[s], flags, out[s]))
    return touched


def drop_members(lists: Lists, is_dropped: Bool[Tensor, " N"]) -> None:
    """Take nodes out of all lists. Their references must lie beyond the horizons, or be gone."""
    if not is_compiled(lists.ids):
        lists_device.drop_members(lists, is_dropped)
        return
    ids, keys, flags = lists.ids.numpy(), lists.keys.numpy(), is_dropped.numpy()
    _run(len(ids), lambda s: lists_compiled.drop_members(ids[s], keys[s], flags))


def admit(lists: Lists, hits: Hits, errors: Float32[Tensor, " n"]) -> None:
    """Put hits into the lists of their rows."""
    if not is_compiled(lists.ids):
        lists_device.admit(lists, hits, errors)
        return
    columns = (hits.rows.numpy(), hits.nodes.numpy(), hits.keys.numpy())
    state = (lists.ids.numpy(), lists.keys.numpy(), lists.horizon.numpy(), errors.numpy())
    _run(
        len(lists.ids),
        lambda s: lists_compiled.admit(s.start, s.stop, *columns, *state),
    )


def rank_lists(
    lists: Lists,
    own: Int64[Tensor, " m"],
    rows: Float32[Tensor, "n D"],
    drift: Float64[Tensor, " n"],
    members: Ranking,
    found: Int64[Tensor, "m k"],
    distances: Float64[Tensor, "m k"],
) -> int:
    """The k nearest of the lists of the rows `own` now, by (canonical distance, id).

    Args:
        found, distances: The neighbours before; overwritten, -1/inf where a list is short.

    Returns:
        How many distances it took.
    """
    if not is_compiled(rows):
        return lists_device.rank_lists(lists, own, rows, drift, members, found, distances)
    ids, keys = lists.ids[own].numpy(), lists.keys[own].numpy()
    counts: list[int] = []

    def rank(part: slice) -> None:
        counts.append(
            lists_compiled.rank_members(
                own[part].numpy(),
                rows.numpy(),
                members.bank.numpy(),
                members.positions[part].numpy(),
                ids[part],
                keys[part],
                drift.numpy(),
                members.drift.numpy(),
                members.largest_drift,
                members.stretch,
                members.errors[part].numpy(),
                members.unit,
                members.is_changed.numpy(),
                members.is_kept[part].numpy(),
                found[part].numpy(),
                distances[part].numpy(),
            )
        )

    _run(len(own), rank)
    return sum(counts)


def rank_hits(
    hits: Hits,
    rows: Float32[Tensor, "n D"],
    bank: Float32[Tensor, "b D"],
    positions: Int64[Tensor, " h"],
    ids: Int64[Tensor, "n k"],
    distances: Float64[Tensor, "n k"],
) -> None:
    """Offer hits to the ranked neighbours of their rows; `positions` are the nodes' bank rows."""
    if not is_compiled(rows):
        lists_device.rank_hits(hits, rows, bank, positions, ids, distances)
        return
    columns = (hits.rows.numpy(), hits.nodes.numpy(), positions.numpy(), rows.numpy(), bank.numpy())
    out = (ids.numpy(), distances.numpy())
    _run(len(ids), lambda s: lists_compiled.rank_hits(s.start, s.stop, *columns, *out))


def drift_of(
    rows: Float32[Tensor, "n D"],
    reference: Float32[Tensor, "n D"],
    scale: float,
    center: Float32[Tensor, " D"],
) -> Float64[Tensor, " n"]:
    """Distance of every row, brought into the reference's frame, from its reference."""
    if not is_compiled(rows):
        return lists_device.drift_of(rows, reference, scale, center)
    out = torch.empty(rows.shape[0], dtype=torch.float64)
    a, b, middle, drift = rows.numpy(), reference.numpy(), center.numpy(), out.numpy()
    _run(len(out), lambda s: lists_compiled.drift_of(a[s], b[s], scale, middle, drift[s]))
    return out


def _run(num_rows: int, call: Callable[[slice], object]) -> None:
    """Call a compiled loop on one range of rows per thread."""
    with task_threads() as run:
        parts = torch.get_num_threads()
        size = max(1024, -(-num_rows // max(1, parts)))
        run(
            partial(call, slice(start, min(start + size, num_rows)))
            for start in range(0, num_rows, size)
        )
