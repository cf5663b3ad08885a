"""Compiled inner loops of the exact kNN search on the CPU.

A list of candidates is a row of `keys` (ascending half squared distances, inf where empty) and of
`positions` in the bank. `half_*` are half squared lengths (zero for inner products), so a key is
half_a + half_b - product.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I32 = NDArray[np.int32]
I64 = NDArray[np.int64]

# Columns that are compared at once before any of them is looked at.
_CHUNK = 64


@compiled
def insert(keys: F32, positions: I32, key: np.float32, position: int) -> None:
    """Put a candidate into an ascending list, dropping the last one."""
    slot = keys.shape[0] - 1
    while slot > 0 and keys[slot - 1] > key:
        keys[slot] = keys[slot - 1]
        positions[slot] = positions[slot - 1]
        slot -= 1
    keys[slot] = key
    positions[slot] = position


@compiled
def filter_rows(
    products: F32,
    half_a: F32,
    half_b: F32,
    keys: F32,
    positions: I32,
    start_b: int,
    ids_a: I64,
    ids_b: I64,
) -> None:
    """Offer the block's columns (bank rows from `start_b`) to the lists of its rows."""
    last = keys.shape[1] - 1
    num_cols = products.shape[1]
    for i in range(products.shape[0]):
        row = products[i]
        gap = half_a[i] - keys[i, last]
        for start in range(0, num_cols, _CHUNK):
            stop = min(start + _CHUNK, num_cols)
            # Slices, as their indices cannot be negative, let the compiler use vectors.
            part, half_part = row[start:stop], half_b[start:stop]
            is_hit = False
            for j in range(stop - start):
                is_hit |= part[j] > half_part[j] + gap
            if not is_hit:
                continue
            for j in range(start, stop):
                if row[j] > half_b[j] + gap and ids_a[i] != ids_b[j]:
                    key = half_a[i] + half_b[j] - row[j]
                    if key < keys[i, last]:
                        insert(keys[i], positions[i], key, start_b + j)
                        gap = half_a[i] - keys[i, last]


@compiled
def filter_both(
    products: F32,
    half_a: F32,
    half_b: F32,
    keys_a: F32,
    positions_a: I32,
    keys_b: F32,
    positions_b: I32,
    ids_a: I32,
    ids_b: I32,
) -> None:
    """Offer the block's columns to the lists of its rows, and its rows to those of its columns.

    `ids_*` are what goes into the lists as positions.
    """
    last = keys_a.shape[1] - 1
    num_cols = products.shape[1]
    gaps = half_b - keys_b[:, last]
    for i in range(products.shape[0]):
        row = products[i]
        half = half_a[i]
        gap = half - keys_a[i, last]
        for start in range(0, num_cols, _CHUNK):
            stop = min(start + _CHUNK, num_cols)
            part, half_part, gap_part = row[start:stop], half_b[start:stop], gaps[start:stop]
            is_hit = False
            for j in range(stop - start):
                is_hit |= (part[j] > half_part[j] + gap) | (part[j] > half + gap_part[j])
            if not is_hit:
                continue
            for j in range(start, stop):
                if row[j] > half_b[j] + gap or row[j] > half + gaps[j]:
                    key = half + half_b[j] - row[j]
                    if key < keys_a[i, last]:
                        insert(keys_a[i], positions_a[i], key, ids_b[j])
                        gap = half - keys_a[i, last]
                    if key < keys_b[j, last]:
                        insert(keys_b[j], positions_b[j], key, ids_a[i])
                        gaps[j] = half_b[j] - keys_b[j, last]


@compiled
def canonical(a: F32, b: F32, terms: F64, is_product: bool) -> float:
    """`rows.canonical_distances` of one pair, operation by operation the same."""
    width = a.shape[0]
    if is_product:
        for j in range(width):
            terms[j] = np.float64(a[j]) * np.float64(b[j])
    else:
        for j in range(width):
            difference = np.float64(a[j]) - np.float64(b[j])
            terms[j] = difference * difference
    while width > 1:
        half = (width + 1) // 2
        for j in range(width - half):
            terms[j] += terms[half + j]
        width = half
    distance: float = -terms[0] if is_product else np.sqrt(terms[0])
    return distance


@compiled
def rank(distances: F64, ids: I64, distance: float, node_id: int) -> None:
    """Put a neighbour into a list ordered by (distance, id), if it is among the nearest."""
    slot = distances.shape[0] - 1
    if distance > distances[slot] or (distance == distances[slot] and node_id > ids[slot] >= 0):
        return
    while slot > 0 and (
        distances[slot - 1] > distance
        or (distances[slot - 1] == distance and ids[slot - 1] > node_id)
    ):
        distances[slot] = distances[slot - 1]
        ids[slot] = ids[slot - 1]
        slot -= 1
    distances[slot] = distance
    ids[slot] = node_id


@compiled
def rerank(
    queries: F32,
    bank: F32,
    bank_ids: I64,
    keys: F32,
    positions: I32,
    is_product: bool,
    out_ids: I64,
    out_distances: F64,
) -> None:
    """Order each query's candidates by canonical distance and id; keep the nearest."""
    terms = np.empty(max(1, bank.shape[1]), np.float64)
    for i in range(queries.shape[0]):
        for c in range(keys.shape[1]):
            if keys[i, c] == np.inf:
                continue
            at = positions[i, c]
            rank(
                out_distances[i],
                out_ids[i],
                canonical(queries[i], bank[at], terms, is_product),
                bank_ids[at],
            )


@compiled
def rank_within(
    products: F64,
    half_a: F64,
    half_b: F64,
    limits: F64,
    queries: F32,
    bank: F32,
    query_ids: I64,
    bank_ids: I64,
    is_product: bool,
    out_ids: I64,
    out_distances: F64,
) -> None:
    """Rank every column whose key is at most the row's limit by its canonical distance."""
    terms = np.empty(max(1, bank.shape[1]), np.float64)
    num_cols, last = products.shape[1], out_ids.shape[1] - 1
    for i in range(products.shape[0]):
        row = products[i]
        least = half_a[i] - limits[i]
        distances, ids = out_distances[i], out_ids[i]
        for start in range(0, num_cols, _CHUNK):
            stop = min(start + _CHUNK, num_cols)
            part, half_part = row[start:stop], half_b[start:stop]
            is_hit = False
            for j in range(stop - start):
                is_hit |= part[j] >= half_part[j] + least
            if not is_hit:
                continue
            for j in range(start, stop):
                # Nothing is nearer than a list full of identical rows; only a lower id could enter.
                if not is_product and distances[last] == 0 and bank_ids[j] > ids[last]:
                    continue
                if row[j] >= half_b[j] + least and query_ids[i] != bank_ids[j]:
                    distance = canonical(queries[i], bank[j], terms, is_product)
                    rank(distances, ids, distance, bank_ids[j])
