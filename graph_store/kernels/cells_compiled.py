"""Compiled loops of `cells` and `knn_cells`: assigning rows to cells, and what a visit looks at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .knn_compiled import insert

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

# Columns that are compared at once before any of them is looked at.
_CHUNK = 64
# Queries of a visit that are at least multiplied together.
_GROUP = 16
# Covers the roundings of a float32 square root and of products with it.
_ROUND_UP = 1 + 1e-6


@compiled
def assign(
    products: F32,
    half_rows: F32,
    half_centers: F32,
    cells: I64,
    own_products: F32,
    radii: F32,
    reach: F32,
) -> None:
    """Find each row's nearest center, and raise `radii` and `reach` (transposed) to cover it."""
    num_cells = half_centers.shape[0]
    for i in range(products.shape[0]):
        row = products[i]
        best = 0
        for c in range(1, num_cells):
            if row[c] - half_centers[c] > row[best] - half_centers[best]:
                best = c
        cells[i] = best
        radii[best] = max(radii[best], half_rows[i] + half_centers[best] - row[best])
        own, target = row[best], reach[best]
        own_products[i] = own
        for c in range(num_cells):
            target[c] = max(target[c], row[c] - own)


@compiled
def lower_bounds(
    products: F32,
    half_queries: F32,
    half_centers: F32,
    own: I64,
    gaps: F32,
    reach: F32,
    radii: F32,
    guard: float,
    out: F32,
) -> None:
    """Keys that no member of a cell falls short of; see `cells.lower_bounds`."""
    for i in range(products.shape[0]):
        row, b = products[i], own[i]
        for c in range(radii.shape[0]):
            squared = 2.0 * (half_queries[i] + half_centers[c] - row[c] - guard)
            bound = np.sqrt(max(squared, 0.0)) - np.sqrt(2.0 * (radii[c] + guard))
            slab = (np.float64(row[b]) - row[c] - reach[b, c] - 2.0 * guard) / gaps[b, c]
            bound = max(bound, slab, 0.0)
            out[i, c] = max(bound * bound * (0.5 - 1e-6) - guard, 0.0)


@compiled
def next_cell(
    order: I64,
    at: int,
    own: I64,
    products: F32,
    gaps: F32,
    reach: F32,
    bounds: F32,
    guard: float,
    picked: I32,
    least: F32,
) -> tuple[int, int]:
    """The first cell from order[at] on that a query of the block needs, and by how many.

    Args:
        products: Of the centers (rows) with the queries (columns).

    Returns:
        `picked` holds the queries that need the cell, and `least` what a member's projection
        must reach for them to need that member. A query's own cell is left out.
    """
    num_queries = own.shape[0]
    slack = np.float32(2.0 * guard)
    radii = np.empty(num_queries, np.float32)
    for i in range(num_queries):
        radii[i] = np.sqrt(2.0 * (max(bounds[i], np.float32(0.0)) + guard)) * _ROUND_UP
    for t in range(at, order.shape[0]):
        c = order[t]
        row, count = products[c], 0
        for i in range(num_queries):
            b = own[i]
            value = products[b, i] - row[i] - radii[i] * gaps[b, c] - slack
            if value <= reach[b, c] and b != c:
                picked[count] = i
                least[count] = value
                count += 1
        if count > 0:
            return t, count
    return order.shape[0], 0


@compiled
def plan_visit(
    picked: I32,
    least: F32,
    products: F32,
    own_products: F32,
    start: int,
    min_saving: int,
    queries: I32,
    members: I32,
    cuts: I32,
) -> tuple[int, int]:
    """Order queries and members such that a few rectangles hold all pairs that are needed.

    Args:
        picked, least: As `next_cell` gives them.
        products, own_products: Of the cell's members with the queries' center and with their own.
        start: Of the members among all rows.
        min_saving: Pairs that a further rectangle must save.

    Returns:
        The number of rectangles and of members that anybody needs. `queries` holds `picked`, the
        most demanding first; `members` those needed, the most needed first; row r of `cuts` the
        first query, the one behind the last and the number of first members of rectangle r.
    """
    count, num_members = picked.shape[0], products.shape[0]
    lowest = least.min()
    wanted = 0
    for j in range(num_members):
        wanted += products[j] - own_products[j] >= lowest
    at = 0
    for j in range(num_members):
        if products[j] - own_products[j] >= lowest:
            members[at] = start + j
            at += 1
    queries[:count] = picked
    cuts[0, 0], cuts[0, 1], cuts[0, 2] = 0, count, wanted
    # Half of the pairs is the most that one rectangle more can be expected to save.
    if count * wanted < 2 * min_saving or count < 2 * _GROUP:
        return 1, wanted
    values = np.empty(wanted, np.float32)
    for j in range(wanted):
        values[j] = own_products[members[j] - start] - products[members[j] - start]
    by_value, by_least = np.argsort(values), np.argsort(least)
    members[:wanted] = members[:wanted][by_value]
    queries[:count] = picked[by_least]
    num_cuts, needed = 0, wanted
    for i in range(_GROUP, count, _GROUP):
        while needed > 0 and -values[by_value[needed - 1]] < least[by_least[i]]:
            needed -= 1
        if (cuts[num_cuts, 2] - needed) * (count - i) >= min_saving:
            cuts[num_cuts, 1] = i
            num_cuts += 1
            cuts[num_cuts, 0], cuts[num_cuts, 2] = i, needed
    cuts[num_cuts, 1] = count
    return num_cuts + 1, wanted


@compiled
def gather(rows: F32, half: F32, picked: I32, out: F32, out_half: F32) -> None:
    for i in range(picked.shape[0]):
        at = picked[i]
        out_half[i] = half[at]
        for j in range(rows.shape[1]):
            out[i, j] = rows[at, j]


@compiled
def filter_picked(
    products: F32,
    queries: I32,
    members: I32,
    half_queries: F32,
    half_members: F32,
    positions_members: I64,
    ids_queries: I64,
    ids_bank: I64,
    keys: F32,
    positions: I32,
    bounds: F32,
) -> None:
    """Offer the block's columns to the lists of its rows.

    Args:
        queries: The list of each row.
        members: Where `positions_members` holds the bank position of each column.
        bounds: No list takes a key from here on; lowered to the last key of a full list.
    """
    last = keys.shape[1] - 1
    num_cols = products.shape[1]
    for i in range(products.shape[0]):
        row, at = products[i], queries[i]
        gap = half_queries[i] - bounds[at]
        for start in range(0, num_cols, _CHUNK):
            stop = min(start + _CHUNK, num_cols)
            part, half_part = row[start:stop], half_members[start:stop]
            hits = 0
            for j in range(stop - start):
                hits += part[j] > half_part[j] + gap
            if hits == 0:
                continue
            for j in range(start, stop):
                if row[j] > half_members[j] + gap:
                    position = positions_members[members[j]]
                    key = half_queries[i] + half_members[j] - row[j]
                    if key < bounds[at] and ids_queries[at] != ids_bank[position]:
                        insert(keys[at], positions[at], key, position)
                        bounds[at] = min(bounds[at], keys[at, last])
                        gap = half_queries[i] - bounds[at]
