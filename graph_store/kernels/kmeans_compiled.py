"""Compiled loops of k-means on the CPU; see `kmeans_cpu`.

Centers that products see come in G groups of `GROUP`: those of group g are at the places g, g + G,
g + 2 G ... Places without a center are infinitely far (half = inf). A key is half_row + half_center
- product, half the squared distance; `keys` are without the first.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .compiled import compiled

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
Rows = NDArray[np.float32] | NDArray[np.float64]
Function = TypeVar("Function", bound=Callable[..., object])

GROUP = 8
# A product that is taken alone costs as much as this many of a block.
_SPARSE = 4
# Distances that are closer than this are not told apart by bounds: covers float64's roundings.
_MARGIN = 1 + 1e-9
# Covers the rounding of a bound in float32.
_DOWN = np.float32(1 - 2.0**-22)


def _in_any_order(function: Function) -> Function:
    """`compiled`, but sums and minima may be taken in any order, with vectors."""
    options = {"cache": True, "nogil": True, "fastmath": {"reassoc", "contract", "nnan", "nsz"}}
    return cast(Function, njit(**options)(inspect.unwrap(function)))


@compiled
def squared_distance(row: Rows, scale: float, center: F64, terms: F64) -> float:
    """`fixed_point.squared_distances` of one row, operation by operation the same."""
    width = row.shape[0]
    for j in range(width):
        difference = np.rint(np.float64(row[j]) * scale) - center[j]
        terms[j] = difference * difference
    while width > 1:
        half = (width + 1) // 2
        for j in range(width - half):
            terms[j] += terms[half + j]
        width = half
    return float(terms[0])


@compiled
def own_distances(x: Rows, scale: float, centers: F64, labels: I64, out: F64) -> None:
    """Squared distance of every row from its center."""
    terms = np.empty(x.shape[1], np.float64)
    for i in range(x.shape[0]):
        out[i] = squared_distance(x[i], scale, centers[labels[i]], terms)


@compiled
def put_in_frame(x: Rows, scale: float, middle: F64, unit: float, out: Rows, half: Rows) -> None:
    """Rows on the grid, shifted and scaled to about 1 and rounded; half their squared lengths."""
    for i in range(x.shape[0]):
        total = 0.0
        for j in range(x.shape[1]):
            out[i, j] = (np.rint(np.float64(x[i, j]) * scale) - middle[j]) * unit
            total += np.float64(out[i, j]) * np.float64(out[i, j])
        half[i] = 0.5 * total


@_in_any_order
def multiply(
    rows: Rows, i: int, framed: Rows, g: int, step: int, half: Rows, keys: Rows, t: int
) -> None:
    """Make the keys of row i with the `GROUP` centers of group g, in one pass over the row."""
    b, c, d, e = g + step, g + 2 * step, g + 3 * step, g + 4 * step
    f, h, k = g + 5 * step, g + 6 * step, g + 7 * step
    zero = half[0] - half[0]
    key_a, key_b, key_c, key_d = zero, zero, zero, zero
    key_e, key_f, key_h, key_k = zero, zero, zero, zero
    for j in range(rows.shape[1]):
        value = rows[i, j]
        key_a += value * framed[g, j]
        key_b += value * framed[b, j]
        key_c += value * framed[c, j]
        key_d += value * framed[d, j]
        key_e += value * framed[e, j]
        key_f += value * framed[f, j]
        key_h += value * framed[h, j]
        key_k += value * framed[k, j]
    keys[t, g], keys[t, b], keys[t, c] = half[g] - key_a, half[b] - key_b, half[c] - key_c
    keys[t, d], keys[t, e], keys[t, f] = half[d] - key_d, half[e] - key_e, half[f] - key_f
    keys[t, h], keys[t, k] = half[h] - key_h, half[k] - key_k


@_in_any_order
def pick(
    start: int,
    stop: int,
    drift: F64,
    group_drift: F32,
    rows: Rows,
    half_rows: Rows,
    framed: Rows,
    half_centers: Rows,
    places: I64,
    error: float,
    labels: I64,
    upper: F64,
    bounds: F32,
    keys: Rows,
    sparse: I64,
    dense: I64,
) -> tuple[int, int, int]:
    """Move the bounds of rows by how far centers went; the rows that may have another nearest.

    Args:
        drift: How far each center went.
        group_drift: The same of groups: of the one that went farthest, of any other in the group,
            and (as a number) which the first is.
        places: Of each center among the framed ones.
        upper: Bounds on the distance from the own center; `bounds` on that from all others of each
            group, as float32.
        keys: Filled with the keys of sparse rows, inf where they are not needed.
        sparse, dense: Filled with rows to which few, and to which many centers may be nearest.

    Returns:
        How many are sparse and dense, and where it stopped, which is where one of them is full.
    """
    num_groups, dim = bounds.shape[1], rows.shape[1]
    num_sparse, num_dense = 0, 0
    for i in range(start, stop):
        if num_sparse == sparse.shape[0] or num_dense == dense.shape[0]:
            return num_sparse, num_dense, i
        own = labels[i]
        home = places[own] % num_groups
        before = bounds[i, home]
        radius = upper[i] + drift[own]
        for g in range(num_groups):
            bounds[i, g] = bounds[i, g] * _DOWN - group_drift[0, g]
        if group_drift[2, home] == own:
            bounds[i, home] = before * _DOWN - group_drift[1, home]
        lowest = bounds[i, 0]
        for g in range(num_groups):
            lowest = min(lowest, bounds[i, g])
        upper[i] = radius
        if radius * _MARGIN < lowest:
            continue
        at, half = places[own], np.float64(half_rows[i])
        product = rows[i, 0] * framed[at, 0]
        for j in range(1, dim):
            product += rows[i, j] * framed[at, j]
        key = half_centers[at] - product
        near = max(half + key, 0.0)
        radius = np.sqrt(2.0 * (near * (1.0 + 4.0 * error) + 4.0 * error * half))
        upper[i] = radius
        radius *= _MARGIN
        if radius < lowest:
            continue
        num_open = 0
        for g in range(num_groups):
            num_open += radius >= bounds[i, g]
        if num_open * _SPARSE > num_groups:
            dense[num_dense] = i
            num_dense += 1
            continue
        for c in range(keys.shape[1]):
            keys[num_sparse, c] = np.inf
        for g in range(num_groups):
            if radius >= bounds[i, g]:
                multiply(rows, i, framed, g, num_groups, half_centers, keys, num_sparse)
        keys[num_sparse, at] = key
        sparse[num_sparse] = i
        num_sparse += 1
    return num_sparse, num_dense, stop


@_in_any_order
def key_all(products: Rows, half_centers: Rows) -> None:
    """Products with all centers become keys."""
    for t in range(products.shape[0]):
        for c in range(products.shape[1]):
            products[t, c] = half_centers[c] - products[t, c]


@_in_any_order
def settle(
    keys: Rows,
    picked: I64,
    half_rows: Rows,
    order: I64,
    error: float,
    upper: F64,
    bounds: F32,
    least: Rows,
    found: I64,
    limits: F64,
) -> None:
    """Find the nearest centers of picked rows, and renew their bounds.

    Args:
        keys: Without `half_rows`; inf for centers that the bounds exclude.
        order: The center at each place.
        least: Room for a number per group.
        found: Filled with the nearest center; -1 where it is not certain.
        limits: Filled with the keys up to which centers may be the nearest.
    """
    num_groups = bounds.shape[1]
    for t in range(picked.shape[0]):
        i = picked[t]
        half = np.float64(half_rows[i])
        for g in range(num_groups):
            least[g] = keys[t, g]
        for lane in range(1, GROUP):
            for g in range(num_groups):
                least[g] = min(least[g], keys[t, lane * num_groups + g])
        smallest = least[0]
        for g in range(num_groups):
            smallest = min(smallest, least[g])
        near = max(smallest + half, 0.0)
        limit = (near * (1.0 + 4.0 * error) + 8.0 * error * half) / (1.0 - 4.0 * error) - half
        best, rivals = 0, 0
        for g in range(num_groups):
            if least[g] <= limit:
                for c in range(g, GROUP * num_groups, num_groups):
                    if keys[t, c] <= limit:
                        rivals += 1
                        best = c
        found[t] = order[best] if rivals == 1 else -1
        limits[t] = limit
        upper[i] = np.inf
        if rivals == 1:
            home, low = best % num_groups, np.inf
            for c in range(home, GROUP * num_groups, num_groups):
                if c != best:
                    low = min(low, keys[t, c])
            least[home] = low
            upper[i] = np.sqrt(2.0 * (near * (1.0 + 4.0 * error) + 4.0 * error * half))
        for g in range(num_groups):
            far = max(np.float64(least[g]) + half, 0.0)
            square = 2.0 * (far * (1.0 - 4.0 * error) - 4.0 * error * half)
            new = np.sqrt(np.float32(max(square, 0.0))) * _DOWN
            bounds[i, g] = new if least[g] < np.inf else bounds[i, g]


@compiled
def move(
    keys: Rows,
    picked: I64,
    found: I64,
    limits: F64,
    order: I64,
    x: Rows,
    scale: float,
    factors: tuple[float, float],
    centers: F64,
    labels: I64,
    sums: I64,
    tallies: I64,
    totals: I64,
) -> None:
    """Compare what `settle` left open exactly, and count what moves.

    Args:
        factors: `Grid.word_factors`.
        centers: On the grid.
        sums: Of the rows on the grid, by cluster; changed by what moves.
        tallies: Two rows: how many more rows each cluster has, and whether any came or went.
        totals: Rows that moved, and the words of how much squared distance they saved.
    """
    terms = np.empty(x.shape[1], np.float64)
    for t in range(picked.shape[0]):
        i = picked[t]
        old, new = labels[i], found[t]
        if new < 0:
            distance = np.inf
            for place in range(order.shape[0]):
                if keys[t, place] <= limits[t]:
                    c = order[place]
                    exact = squared_distance(x[i], scale, centers[c], terms)
                    if exact < distance or (exact == distance and c < new):
                        new, distance = c, exact
        if new == old:
            continue
        labels[i] = new
        totals[0] += 1
        tallies[0, new] += 1
        tallies[1, new] = 1
        for j in range(x.shape[1]):
            sums[new, j] += np.int64(np.rint(np.float64(x[i, j]) * scale))
        if old < 0:
            continue
        tallies[0, old] -= 1
        tallies[1, old] = 1
        for j in range(x.shape[1]):
            sums[old, j] -= np.int64(np.rint(np.float64(x[i, j]) * scale))
        saved = squared_distance(x[i], scale, centers[old], terms)
        saved = (saved - squared_distance(x[i], scale, centers[new], terms)) * factors[0]
        high = np.floor(saved)
        totals[1] += np.int64(high)
        totals[2] += np.int64(np.floor((saved - high) * factors[1]))
