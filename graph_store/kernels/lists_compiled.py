"""Compiled inner loops of lists with a horizon; see `lists`. Rows are numbered as in the shard."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled
from .knn_compiled import F32, F64, I32, I64, canonical, insert

Flags = NDArray[np.bool_]

# Columns that are compared at once before any of them is looked at.
_CHUNK = 64


@compiled
def find_touched(ids: I32, is_changed: Flags, touched: Flags) -> None:
    """Mark the rows of which a list member has changed."""
    for i in range(ids.shape[0]):
        for c in range(ids.shape[1]):
            if ids[i, c] < 0:
                break
            if is_changed[ids[i, c]]:
                touched[i] = True
                break


@compiled
def drop_members(ids: I32, keys: F32, is_dropped: Flags) -> None:
    """Take some nodes out of all lists; lists stay packed and ascending."""
    for i in range(ids.shape[0]):
        kept = 0
        for c in range(ids.shape[1]):
            node = ids[i, c]
            if node < 0:
                break
            if is_dropped[node]:
                continue
            if kept < c:
                ids[i, kept] = node
                keys[i, kept] = keys[i, c]
            kept += 1
        for c in range(kept, ids.shape[1]):
            if ids[i, c] < 0:
                break
            ids[i, c] = -1
            keys[i, c] = np.inf


@compiled
def admit(
    first: int,
    stop: int,
    rows: I32,
    nodes: I32,
    new_keys: F32,
    ids: I32,
    keys: F32,
    horizon: F32,
    errors: F32,
) -> None:
    """Put nodes into the lists of the rows first..stop-1; who does not fit lowers the horizon."""
    last = ids.shape[1] - 1
    for h in range(rows.shape[0]):
        i, key = rows[h], new_keys[h]
        if i < first or i >= stop or key - errors[i] >= horizon[i]:
            continue
        if ids[i, last] >= 0:
            evicted = max(key, keys[i, last])
            horizon[i] = min(horizon[i], evicted - errors[i])
        if key < keys[i, last]:
            insert(keys[i], ids[i], key, nodes[h])


@compiled
def scan_rows(
    products: F32,
    half_a: F32,
    half_b: F32,
    gaps_b: F32,
    keys: F32,
    nodes: I32,
    ids_a: I32,
    ids_b: I32,
    hit_rows: I32,
    hit_nodes: I32,
    hit_keys: F32,
    start_b: int,
) -> int:
    """Offer the block's columns to the lists of its rows, and name the rows within a column's gap.

    Args:
        gaps_b: A row a is a hit for column b where product > half_a + gaps_b.
        keys, nodes: Lists of the rows.
        hit_rows: Receives the columns' numbers (from `start_b`), with `hit_nodes` and `hit_keys`.

    Returns:
        The number of hits.
    """
    last = keys.shape[1] - 1
    num_cols = products.shape[1]
    count = 0
    for i in range(products.shape[0]):
        row = products[i]
        half = half_a[i]
        gap = half - keys[i, last]
        for start in range(0, num_cols, _CHUNK):
            stop = min(start + _CHUNK, num_cols)
            part, half_part, gap_part = row[start:stop], half_b[start:stop], gaps_b[start:stop]
            is_hit = False
            for j in range(stop - start):
                is_hit |= (part[j] > half_part[j] + gap) | (part[j] > half + gap_part[j])
            if not is_hit:
                continue
            for j in range(start, stop):
                if ids_a[i] == ids_b[j]:
                    continue
                if row[j] > half_b[j] + gap:
                    key = half + half_b[j] - row[j]
                    if key < keys[i, last]:
                        insert(keys[i], nodes[i], key, ids_b[j])
                        gap = half - keys[i, last]
                if row[j] > half + gaps_b[j]:
                    hit_rows[count] = start_b + j
                    hit_nodes[count] = ids_a[i]
                    hit_keys[count] = half + half_b[j] - row[j]
                    count += 1
    return count


@compiled
def merge_partial(keys: F32, nodes: I32, new_keys: F32, new_nodes: I32) -> None:
    """Put the members of other lists of the same rows into the lists."""
    last = keys.shape[1] - 1
    for i in range(keys.shape[0]):
        for c in range(new_keys.shape[1]):
            if new_nodes[i, c] < 0:
                continue
            if new_keys[i, c] >= keys[i, last]:
                break
            insert(keys[i], nodes[i], new_keys[i, c], new_nodes[i, c])


@compiled
def differing_rows(a: F32, b: F32, out: Flags) -> None:
    """Mark the rows in which two arrays differ."""
    for i in range(a.shape[0]):
        count = 0
        for j in range(a.shape[1]):
            count += a[i, j] != b[i, j]
        out[i] = count > 0


@compiled
def rank_once(distances: F64, ids: I64, distance: float, node: int) -> None:
    """Put a neighbour into a list ordered by (distance, id) unless it is there."""
    slot = distances.shape[0] - 1
    if distance > distances[slot] or (distance == distances[slot] and node > ids[slot] >= 0):
        return
    while slot >= 0 and (
        distances[slot] > distance or (distances[slot] == distance and ids[slot] > node)
    ):
        slot -= 1
    if slot >= 0 and distances[slot] == distance and ids[slot] == node:
        return
    for later in range(distances.shape[0] - 1, slot + 1, -1):
        distances[later] = distances[later - 1]
        ids[later] = ids[later - 1]
    distances[slot + 1] = distance
    ids[slot + 1] = node


@compiled
def _contains(ids: I64, node: int) -> bool:
    found = False
    for c in range(ids.shape[0]):
        found |= ids[c] == node
    return found


@compiled
def rank_members(
    own: I64,
    rows: F32,
    bank: F32,
    positions: I32,
    ids: I32,
    keys: F32,
    drift: F64,
    bank_drift: F64,
    largest_drift: float,
    stretch: float,
    errors: F32,
    unit: float,
    is_changed: Flags,
    is_kept: Flags,
    out_ids: I64,
    out_distances: F64,
) -> int:
    """The nearest of each row's list by canonical distance and id.

    A member at reference distance r is now at least stretch r - drift_i - drift_j away, so most
    members of a long list are told without a look at them.

    Args:
        own: Numbers of the rows in `rows` and `drift`; the other arrays go by position in `own`.
        bank, positions, bank_drift: Rows of the members, where they lie, and their drift.
        is_kept: Rows that have not moved: of what they have in `out_ids`, only nodes that
            `is_changed` are looked at again.
        unit: Scale of drifts and keys against canonical distances.

    Returns:
        The number of distances that were computed.
    """
    terms = np.empty(max(1, rows.shape[1]), np.float64)
    last = out_ids.shape[1] - 1
    evaluated = 0
    for r in range(own.shape[0]):
        i = own[r]
        kept = 0
        if is_kept[r]:
            for c in range(last + 1):
                node = out_ids[r, c]
                if node >= 0 and not is_changed[node]:
                    out_ids[r, kept], out_distances[r, kept] = node, out_distances[r, c]
                    kept += 1
        out_ids[r, kept:], out_distances[r, kept:] = -1, np.inf
        for c in range(ids.shape[1]):
            if ids[r, c] < 0:
                break
            worst = out_distances[r, last] * unit
            if worst < np.inf:
                key = max(np.float64(keys[r, c]) - errors[r], 0.0)
                lower = (stretch * np.sqrt(2.0 * key)) * (1.0 - 1e-7) - drift[i]
                if lower - largest_drift > worst:
                    break
                if lower - bank_drift[positions[r, c]] > worst:
                    continue
            if kept > 0 and not is_changed[ids[r, c]] and _contains(out_ids[r], ids[r, c]):
                continue
            distance = canonical(rows[i], bank[positions[r, c]], terms, False)
            evaluated += 1
            rank_once(out_distances[r], out_ids[r], distance, ids[r, c])
    return evaluated


@compiled
def rank_hits(
    first: int,
    stop: int,
    hit_rows: I32,
    hit_nodes: I32,
    positions: I64,
    rows: F32,
    bank: F32,
    out_ids: I64,
    out_distances: F64,
) -> None:
    """Offer hits to the ranked neighbours of the rows first..stop-1.

    `positions` are the places of the nodes' rows in the bank.
    """
    terms = np.empty(max(1, rows.shape[1]), np.float64)
    for h in range(hit_rows.shape[0]):
        i = hit_rows[h]
        if i < first or i >= stop:
            continue
        distance = canonical(rows[i], bank[positions[h]], terms, False)
        rank_once(out_distances[i], out_ids[i], distance, hit_nodes[h])


@compiled
def drift_of(rows: F32, reference: F32, scale: float, center: F32, out: F64) -> None:
    """Distance of each row, in the reference's frame, from its reference."""
    for i in range(rows.shape[0]):
        total = 0.0
        for j in range(rows.shape[1]):
            framed = np.float64(rows[i, j]) * scale - np.float64(center[j])
            difference = framed - np.float64(reference[i, j])
            total += difference * difference
        out[i] = np.sqrt(total)
