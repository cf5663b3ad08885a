"""Exact k nearest rows within a batch of some hundred to some ten thousand rows.

As in `knn`, products only preselect and the canonical distance decides, but rows may be float64,
too, and nothing is prepared that a small batch would not pay for. Rows are centred and scaled,
which leaves the order of distances alone. With key(x, y) = |y|^2/2 - xy, half the squared distance
up to a constant of the query, whatever has a key within twice the largest possible error of the
query's k-th key is ranked by canonical distance. Queries with too many of these are searched again
with float64 products, and what these cannot tell either (ties) with no products at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from .compiled import compiled, split_rows, task_threads
from .knn import knn_self_join
from .knn_compiled import canonical, rank
from .precision import exact_products
from .scaling import key_error

# Products that are held at once: they stay in a core's cache.
_BLOCK_NUMBERS = 1 << 19
# Candidates of a query that are worth ranking before better products are tried.
_CAPACITY = 256
# Groups of columns per neighbour.
_GROUPS = 4

Rows = NDArray[np.floating]
I64 = NDArray[np.int64]
F64 = NDArray[np.float64]
Found = tuple[Int64[Tensor, "n k"], Float64[Tensor, "n k"]]


def nearest(rows: Float[Tensor, "n D"], k: int) -> Found:
    """The k nearest other rows of every row, by (distance, row number).

    Args:
        rows: Float32 or float64, all finite, more than k.

    Returns:
        Row numbers and canonical distances (`rows.canonical_distances`).

    Cost:
        n^2 D multiplications; memory of two copies of the rows and of 2^19 products per thread.
    """
    if rows.device.type != "cpu":
        return _nearest_on_device(rows, k)
    rows = rows.contiguous()
    # One thread: handing out such small work takes longer than doing it.
    with task_threads():
        ids = torch.full((rows.shape[0], k), -1)
        distances = torch.full((rows.shape[0], k), torch.inf, dtype=torch.float64)
        scaled = rows.to(torch.float64)
        scaled = scaled - scaled.mean(0)
        scaled /= max(float(scaled.abs().max()) if scaled.numel() else 0.0, 1e-300)
    again = torch.arange(rows.shape[0])
    for dtype in (torch.float32, torch.float64):
        with task_threads():
            converted = scaled.to(dtype)
        again = _search(rows, converted, again, ids, distances)
        if not len(again):
            break
    _rank_all(rows.numpy(), again.numpy(), ids.numpy(), distances.numpy())
    return ids, distances


@dataclass(frozen=True)
class _Task:
    """What all threads share. `margin` is twice the largest possible error of a key."""

    rows: Float[Tensor, "n D"]
    scaled: Float[Tensor, "n D"]
    half: Float[Tensor, " n"]
    margin: float
    queries: Int64[Tensor, " m"]
    ids: Int64[Tensor, "n k"]
    distances: Float64[Tensor, "n k"]
    is_done: Bool[Tensor, " m"]


def _search(
    rows: Float[Tensor, "n D"],
    scaled: Float[Tensor, "n D"],
    queries: Int64[Tensor, " m"],
    ids: Int64[Tensor, "n k"],
    distances: Float64[Tensor, "n k"],
) -> Int64[Tensor, " left"]:
    """Enter the neighbours of some queries; returns those that the products cannot tell."""
    with task_threads():
        lengths = torch.linalg.vector_norm(scaled, dim=1, dtype=torch.float64)
        half = (lengths.square() / 2).to(scaled.dtype)
    # As if rows were longer by 16 entries: the entries themselves are rounded, too.
    margin = 2 * key_error(scaled.shape[1] + 16, float(lengths.max()), scaled.dtype)
    is_done = torch.zeros(len(queries), dtype=torch.bool)
    task = _Task(rows, scaled, half, margin, queries, ids, distances, is_done)
    parts = split_rows(len(queries), len(queries) * len(rows))
    with exact_products(rows.device):
        if len(parts) == 1:
            _search_part(task, *parts[0])
        else:
            with task_threads() as run:
                run(partial(_search_part, task, *part) for part in parts)
    return queries[~is_done]


def _search_part(task: _Task, first: int, last: int) -> None:
    step = max(1, _BLOCK_NUMBERS // len(task.rows))
    buffer = task.scaled.new_empty(min(step, last - first), len(task.rows))
    for start in range(first, last, step):
        part = slice(start, min(start + step, last))
        own = task.queries[part]
        products = torch.mm(task.scaled[own], task.scaled.T, out=buffer[: len(own)])
        _select(
            products.numpy(),
            task.half.numpy(),
            task.margin,
            own.numpy(),
            task.rows.numpy(),
            task.ids.numpy(),
            task.distances.numpy(),
            task.is_done[part].numpy(),
        )


def _nearest_on_device(rows: Float[Tensor, "n D"], k: int) -> Found:
    if rows.dtype == torch.float32:
        return knn_self_join(rows.contiguous(), k)
    found: tuple[list[Tensor], list[Tensor]] = [], []
    step = max(1, _BLOCK_NUMBERS // len(rows))
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        # Sums of squared differences: nothing cancels.
        d = torch.cdist(part, rows, compute_mode="donot_use_mm_for_euclid_dist")
        own = torch.arange(len(part), device=rows.device)
        d[own, own + start] = torch.inf
        near = d.sort(dim=1, stable=True)
        found[0].append(near.indices[:, :k])
        found[1].append(near.values[:, :k])
    return torch.cat(found[0]), torch.cat(found[1])


@compiled
def _select(
    products: Rows,
    half: Rows,
    margin: float,
    queries: I64,
    rows: Rows,
    ids: I64,
    distances: F64,
    is_done: NDArray[np.bool_],
) -> None:
    """Rank what is near by the products; a query with too much of it stays undone.

    Columns are dealt to groups. As many groups as there are neighbours have a least key of at most
    the k-th least of these, so nothing above that is near, and few groups have to be looked into.
    """
    num_cols, k = products.shape[1], ids.shape[1]
    num_groups = -(-num_cols // max(1, num_cols // (_GROUPS * k)))
    least, order = np.empty(num_groups, half.dtype), np.empty(num_cols, half.dtype)
    keys, places = np.empty(num_cols, half.dtype), np.empty(num_cols, np.int64)
    terms = np.zeros(max(1, rows.shape[1]))
    for row in range(products.shape[0]):
        query, product = queries[row], products[row]
        product[query] = -np.inf
        least[:] = np.inf
        for start in range(0, num_cols, num_groups):
            own = product[start : start + num_groups]
            offset, lowest = half[start : start + num_groups], least[: own.shape[0]]
            for g in range(own.shape[0]):
                key = offset[g] - own[g]
                lowest[g] = key if key < lowest[g] else lowest[g]
        order[:num_groups] = least
        limit, count = _smallest(order[:num_groups], k) + margin, 0
        for g in range(num_groups):
            if least[g] <= limit:
                for j in range(g, num_cols, num_groups):
                    keys[count], places[count] = half[j] - product[j], j
                    count += keys[count] <= limit
        order[:count] = keys[:count]
        limit, kept = _smallest(order[:count], k) + margin, 0
        for at in range(count):
            places[kept] = places[at]
            kept += keys[at] <= limit
        is_done[row] = kept <= _CAPACITY
        if is_done[row]:
            for at in range(kept):
                distance = canonical(rows[query], rows[places[at]], terms, False)
                rank(distances[query], ids[query], distance, places[at])


@compiled
def _smallest(values: Rows, k: int) -> float:
    """The k-th smallest of the values, which are left in another order; inf if there are fewer."""
    if values.shape[0] < k:
        return np.inf
    low, high = 0, values.shape[0] - 1
    while low < high:
        pivot, i, j = values[(low + high) // 2], low, high
        while i <= j:
            while values[i] < pivot:
                i += 1
            while values[j] > pivot:
                j -= 1
            if i <= j:
                values[i], values[j] = values[j], values[i]
                i += 1
                j -= 1
        if k - 1 <= j:
            high = j
        elif k - 1 >= i:
            low = i
        else:
            break
    smallest: float = values[k - 1]
    return smallest


@compiled
def _rank_all(rows: Rows, queries: I64, ids: I64, distances: F64) -> None:
    """The neighbours of some rows among all, without products."""
    terms, last = np.zeros(max(1, rows.shape[1])), ids.shape[1] - 1
    for query in queries:
        for j in range(rows.shape[0]):
            # Nothing with a higher number enters a list of identical rows.
            if distances[query, last] == 0:
                break
            if j != query:
                distance = canonical(rows[query], rows[j], terms, False)
                rank(distances[query], ids[query], distance, j)
