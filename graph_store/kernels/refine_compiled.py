"""Compiled inner loops of neighbour-of-neighbour refinement.

Nothing here depends on the order in which edges or candidates come: reverse neighbours are chosen
by a priority that the edge alone decides, and lists are the nearest by (distance, id).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .compiled import compiled
from .knn_compiled import F32, F64, I64, canonical, rank

B8 = NDArray[np.bool_]
Function = TypeVar("Function", bound=Callable[..., object])


def _in_any_order(function: Function) -> Function:
    """`compiled`, but sums may be taken in any order, which makes them several times as fast."""
    options = {"cache": True, "nogil": True, "fastmath": {"reassoc", "contract"}}
    return cast(Function, njit(**options)(inspect.unwrap(function)))


@_in_any_order
def squared(a: F32, b: F32) -> float:
    """Squared distance in float32: off by less than (D + 4) 2^-24 of itself."""
    total = np.float32(0)
    for j in range(a.shape[0]):
        difference = a[j] - b[j]
        total += difference * difference
    return float(total)


@compiled
def list_edges(start: int, ids: I64, is_new: B8, seed: int, edges: I64) -> None:
    """Edges of nodes `start`, `start` + 1, ... as (target, source, priority, is new).

    Priorities are hashes of edge and seed. New edges go before old ones: what they lead to has not
    been seen.
    """
    at = 0
    for i in range(ids.shape[0]):
        for a in range(ids.shape[1]):
            target = ids[i, a]
            if target < 0:
                break
            mixed = mix(np.uint64(target) ^ mix(np.uint64(start + i) ^ mix(np.uint64(seed))))
            # 61 bits of the hash; bit 61 for old edges.
            priority = np.int64(mixed >> np.uint64(3))
            edges[at, 0] = target
            edges[at, 1] = start + i
            edges[at, 2] = priority if is_new[i, a] else priority + (np.int64(1) << 61)
            edges[at, 3] = is_new[i, a]
            at += 1


@compiled
def mix(number: np.uint64) -> np.uint64:
    """A hash: the step of splitmix64."""
    z = number + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


@compiled
def keep_reverse(
    edges: I64, first: int, last: int, start: int, sources: I64, priorities: I64, is_new: B8
) -> None:
    """Per target in `first`..`last` - 1, keep the edges that point to it of lowest priority.

    `edges` has columns target, source, priority, is new. Row t - `start` of the outputs belongs to
    target t; empty slots have source -1.
    """
    size = sources.shape[1]
    for e in range(edges.shape[0]):
        target = edges[e, 0]
        if target < first or target >= last:
            continue
        row, source, priority = target - start, edges[e, 1], edges[e, 2]
        slot = size - 1
        if sources[row, slot] >= 0 and (
            priority > priorities[row, slot]
            or (priority == priorities[row, slot] and source > sources[row, slot])
        ):
            continue
        while slot > 0 and (
            sources[row, slot - 1] < 0
            or priorities[row, slot - 1] > priority
            or (priorities[row, slot - 1] == priority and sources[row, slot - 1] > source)
        ):
            sources[row, slot] = sources[row, slot - 1]
            priorities[row, slot] = priorities[row, slot - 1]
            is_new[row, slot] = is_new[row, slot - 1]
            slot -= 1
        sources[row, slot] = source
        priorities[row, slot] = priority
        is_new[row, slot] = edges[e, 3] != 0


@compiled
def merge_directions(
    forward: I64, forward_new: B8, reverse: I64, reverse_new: B8, around: I64, num_new: I64
) -> None:
    """Each node's neighbours in either direction, once, new ones first; -1 after the last.

    An edge that is new in one direction is new.
    """
    for i in range(forward.shape[0]):
        at = 0
        for wanted in (True, False):
            for a in range(forward.shape[1]):
                v = forward[i, a]
                if v < 0:
                    break
                new = forward_new[i, a]
                for b in range(reverse.shape[1]):
                    new = new or (reverse[i, b] == v and reverse_new[i, b])
                if new == wanted:
                    around[i, at] = v
                    at += 1
            for b in range(reverse.shape[1]):
                u = reverse[i, b]
                if u < 0:
                    break
                if reverse_new[i, b] == wanted and not _contains(forward[i], u):
                    around[i, at] = u
                    at += 1
            if wanted:
                num_new[i] = at
        around[i, at:] = -1


@compiled
def collect(
    first_id: int,
    lists: I64,
    around: I64,
    num_through: I64,
    places: I64,
    table: I64,
    table_num_new: I64,
    candidates: I64,
    counts: I64,
) -> None:
    """Neighbours of neighbours, each once, without the known ones.

    Args:
        first_id: Node of row 0; the others follow.
        lists: What each node has already.
        around: The nodes' neighbours in both directions, as `merge_directions` says.
        num_through: A node sees all neighbours of its first so many neighbours, and the new ones of
            the others.
        places: Where in `table` those of each neighbour are; -1 = not needed.
        candidates: Room for around.shape[1] squared; filled up to `counts`.
    """
    size = 64
    while size < 2 * (candidates.shape[1] + lists.shape[1] + 1):
        size *= 2
    slots, stamps = np.zeros(size, np.int64), np.zeros(size, np.int64)
    for i in range(around.shape[0]):
        stamp, count = i + 1, 0
        _add(slots, stamps, stamp, first_id + i)
        for a in range(lists.shape[1]):
            if lists[i, a] >= 0:
                _add(slots, stamps, stamp, lists[i, a])
        for a in range(around.shape[1]):
            if around[i, a] < 0:
                break
            at = places[i, a]
            if at < 0:
                continue
            stop = table.shape[1] if a < num_through[i] else table_num_new[at]
            for b in range(stop):
                w = table[at, b]
                if w < 0:
                    break
                if _add(slots, stamps, stamp, w):
                    candidates[i, count] = w
                    count += 1
        counts[i] = count


@compiled
def offer(
    first_id: int,
    queries: F32,
    table: F32,
    candidates: I64,
    places: I64,
    counts: I64,
    is_product: bool,
    ids: I64,
    distances: F64,
    is_new: B8,
    is_changed: B8,
) -> None:
    """Put candidates that are near enough into the lists; mark what came in and whose list changed.

    Candidates may repeat, be in the list, be the node itself or be -1. `places` says where in
    `table` their rows are. Marks of entries that stay are left alone.
    """
    terms = np.empty(max(1, queries.shape[1]), np.float64)
    margin = 1.0 + (queries.shape[1] + 4) * 2.0**-23
    last = ids.shape[1] - 1
    for i in range(queries.shape[0]):
        before = ids[i].copy()
        marks = is_new[i].copy()
        has_entered = False
        for c in range(counts[i]):
            w = candidates[i, c]
            if w < 0 or w == first_id + i:
                continue
            row = table[places[i, c]]
            farthest = distances[i, last]
            if not is_product and squared(queries[i], row) > farthest * farthest * margin:
                continue
            distance = canonical(queries[i], row, terms, is_product)
            if distance > farthest or _contains(ids[i], w):
                continue
            rank(distances[i], ids[i], distance, w)
            has_entered = True
        if not has_entered:
            continue
        for a in range(ids.shape[1]):
            is_new[i, a] = ids[i, a] >= 0
            for b in range(before.shape[0]):
                if before[b] == ids[i, a]:
                    is_new[i, a] = marks[b]
                    break
            is_changed[i] |= before[a] != ids[i, a]


@compiled
def _contains(ids: I64, wanted: int) -> bool:
    found = False
    for a in range(ids.shape[0]):
        found |= ids[a] == wanted
    return found


@compiled
def _add(slots: I64, stamps: I64, stamp: int, key: int) -> bool:
    """Add to the set whose members carry `stamp` (its size a power of 2); whether it was absent."""
    mask = slots.shape[0] - 1
    at = (key * 0x9E3779B1 >> 8) & mask
    while stamps[at] == stamp:
        if slots[at] == key:
            return False
        at = (at + 1) & mask
    slots[at], stamps[at] = key, stamp
    return True
