"""Exact kNN in plain torch operations, for accelerators: products, hits, canonical ranking.

Rows may be rounded for the products (`rounding`) and may lie in the host's memory (`host_rows`);
neither shows in the result. A query of which rounded rows cannot tell the neighbours is searched
with float32 products, and what these cannot tell with float64 ones.

Memory beside the rows, their rounded copy and the lists of k + `PAD` candidates: what `offers`
says, and a few buffers of `PAIR_NUMBERS` float64 numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float32, Float64, Int32, Int64
from torch import Tensor

from . import knn_cpu, lists_device
from .knn_cpu import PAD, Candidates, Found, Search
from .list_types import Framed, Partial, empty_partial
from .merge import merge_topk
from .precision import exact_products
from .rounding import (
    Precision,
    default_precision,
    half_lengths,
    product_error,
    round_to,
    rounding_error,
)
from .rows import canonical_distances
from .scaling import Filter, Scaled

# Queries that are searched at once; each is multiplied with the whole bank.
QUERIES = 1 << 17
BANK_BLOCK = 16384
# Pairs whose float64 differences are held at once.
PAIR_NUMBERS = 1 << 24
# Bounds round down by more than float32 and float64 arithmetic are off.
_DOWN = 1.0 - 1e-6


def search(
    task: Search,
    *,
    precision: Precision | None = None,
    device: torch.device | None = None,
    budget: int | None = None,
) -> Found:
    """The k nearest of every query by (canonical distance, id); -1/inf where there are fewer.

    Args:
        precision: Of the rows in the products; None: what is fast on the device.
        device: Where products are computed; None: where the rows are.
        budget: Bytes of the device's memory for rows of the bank, see `host_rows.place`.
    """
    sides = _make_sides(task, precision, device)
    found = [empty_partial(0, _width(task) - 1, sides.device)]
    for start in range(0, len(task.queries), QUERIES):
        queries = sides.queries.part(slice(start, start + QUERIES))
        queries = replace(queries, rows=queries.rows.to(sides.device))
        lists = empty_partial(len(queries.ids), _width(task) - 1, sides.device)
        lists_device.scan(queries, sides.bank, lists, None, budget=budget)
        found.append(lists)
    keys, nodes = (torch.cat([getattr(f, name) for f in found]) for name in ("keys", "nodes"))
    return _rank(task, sides, Partial(keys, nodes), budget)


def self_join(
    task: Search,
    *,
    precision: Precision | None = None,
    device: torch.device | None = None,
    budget: int | None = None,
) -> Found:
    """`search` of a bank in itself: the queries are the bank, with the same ids.

    Every two blocks of rows are multiplied once, see `search` for the options.
    """
    sides = _make_sides(task, precision, device)
    found = lists_device.search_self(sides.bank, _width(task) - 1, budget=budget)
    return _rank(task, sides, found, budget)


@dataclass(frozen=True)
class _Sides:
    """What is multiplied. `ids` are positions in the bank, -1 for queries that are not in it.

    Attributes:
        errors: Distance of every query from its rounded row and of any bank row from its own.
        error: How far keys of rounded rows can be off.
    """

    queries: Framed
    bank: Framed
    errors: Float64[Tensor, " m"]
    error: float

    @property
    def device(self) -> torch.device:
        return self.bank.half.device


def _make_sides(task: Search, precision: Precision | None, device: torch.device | None) -> _Sides:
    device = device or task.queries.device
    precision = precision or default_precision(device)
    filter, num_rows = task.filter, len(task.bank.ids)
    places = torch.arange(num_rows, dtype=torch.int32, device=task.queries.device)
    bank, bank_errors = _round(filter, filter.bank, places, precision, device)
    if filter.queries is filter.bank:
        queries, errors = replace(bank, ids=_places(task).to(device)), bank_errors
    else:
        queries, errors = _round(filter, filter.queries, _places(task), precision, device)
    worst = float(bank_errors.max()) if num_rows else 0.0
    most = float(errors.max()) if len(errors) else 0.0
    longest = filter.longest + max(worst, most)
    error = product_error(task.queries.shape[1], longest, precision)
    return _Sides(queries, bank, errors + worst, error)


def _round(
    filter: Filter,
    side: Scaled,
    ids: Int32[Tensor, " n"],
    precision: Precision,
    device: torch.device,
) -> tuple[Framed, Float64[Tensor, " n"]]:
    """One side in some precision, and how far each row is from its rounded one."""
    rounded = round_to(side.rows.contiguous(), precision)
    if precision == "float32":
        half, errors = side.half, torch.zeros(len(ids), dtype=torch.float64, device=ids.device)
    else:
        half = torch.zeros_like(side.half) if filter.frame.is_product else half_lengths(rounded)
        errors = rounding_error(side.rows, rounded)
    framed = Framed(rounded.values, half.to(device), ids.to(device), rounded.unit, precision)
    return framed, errors


def _places(task: Search) -> Int32[Tensor, " m"]:
    """Position of every query's own row in the bank; -1 where it has none."""
    ids, order = task.bank.ids.sort()
    if not len(ids):
        return torch.full_like(task.query_ids, -1, dtype=torch.int32)
    at = torch.searchsorted(ids, task.query_ids).clamp(max=len(ids) - 1)
    return torch.where(ids[at] == task.query_ids, order[at], -1).to(torch.int32)


def _width(task: Search) -> int:
    return min(task.k + PAD, max(1, task.bank.rows.shape[0]))


def _rank(task: Search, sides: _Sides, found: Partial, budget: int | None) -> Found:
    """Rank the candidates canonically; search again where the filter may have missed a row."""
    device, home = sides.device, task.queries.device
    keys, nodes = found.keys.to(home), found.nodes.to(home)
    lists, bounds = Candidates(keys, nodes), _true_bounds(task.filter, sides, keys[:, -1])
    is_float32 = sides.bank.precision == "float32"
    if device != home:
        # All are certain where nothing has been left out.
        trusted = bounds if is_float32 else torch.full_like(bounds, torch.inf)
        ids, distances = knn_cpu.rank_candidates(task, lists, trusted)
        again = (~task.filter.certain(distances[:, -1], bounds)).nonzero()[:, 0]
        if is_float32:
            return ids, distances
    else:
        ids, distances = _rerank(task, lists)
        again = (~task.filter.certain(distances[:, -1], bounds)).nonzero()[:, 0]
    if is_float32:
        with exact_products(home):
            for part in torch.split(again, 256) if len(again) else ():
                ids[part], distances[part] = _search_again(task, part, distances[part, -1])
    elif len(again):
        rest = _restricted(task, again)
        ids[again], distances[again] = search(
            rest, precision="float32", device=device, budget=budget
        )
    return ids, distances


def _restricted(task: Search, at: Int64[Tensor, " m"]) -> Search:
    """The same search for some of its queries."""
    queries = task.filter.queries
    part = replace(task.filter, queries=Scaled(queries.rows[at], queries.half[at]))
    return replace(task, queries=task.queries[at], query_ids=task.query_ids[at], filter=part)


def _true_bounds(
    filter: Filter, sides: _Sides, bounds: Float32[Tensor, " m"]
) -> Float32[Tensor, " m"]:
    """What the keys of the rows themselves cannot be below, where those of rounded rows are not."""
    if sides.bank.precision == "float32":
        return bounds
    rounded, errors = bounds.to(torch.float64) - sides.error, sides.errors
    if filter.frame.is_product:
        # |xy - x~y~| <= |x||y - y~| + |x - x~||y~|
        lengths = filter.longest + errors
        true = rounded - errors * lengths * (2.0 - _DOWN)
        true = torch.where(torch.isinf(rounded), rounded, true - true.abs() * (1.0 - _DOWN))
        return true.to(torch.float32)
    distance = (2.0 * rounded.clamp(min=0)).sqrt() * _DOWN - errors
    return (distance.clamp(min=0).square() / 2 * _DOWN).to(torch.float32)


def _key_blocks(
    task: Search, queries: Int64[Tensor, " m"], dtype: torch.dtype
) -> Iterator[tuple[int, Tensor]]:
    """First bank row and keys of each block of the bank; inf at a query's own node."""
    queries = queries.to(task.queries.device)
    a, own = task.filter.frame.apply(task.queries[queries], dtype), task.query_ids[queries]
    for start in range(0, task.bank.rows.shape[0], BANK_BLOCK):
        other = slice(start, start + BANK_BLOCK)
        b = task.filter.frame.apply(task.bank.rows[other], dtype)
        keys = a.half[:, None] + b.half - a.rows @ b.rows.T
        keys[own[:, None] == task.bank.ids[other]] = torch.inf
        yield start, keys


def _rerank(task: Search, lists: Candidates) -> Found:
    none = task.query_ids.new_full((0 if len(task.bank.ids) else len(task.queries), task.k), -1)
    ids, distances = [none], [torch.full_like(none, torch.inf, dtype=torch.float64)]
    step = max(1, PAIR_NUMBERS // (lists.keys.shape[1] * max(1, task.bank.rows.shape[1])))
    queries = task.queries
    for start in range(0, len(queries) - len(none), step):
        part = slice(start, start + step)
        at = lists.positions[part].to(torch.int64).clamp(min=0)
        missing = torch.isinf(lists.keys[part])
        query = queries[part, None].expand(-1, at.shape[1], -1)
        d = _distances(task, query, task.bank.rows[at])
        names = torch.where(missing, -1, task.bank.ids[at])
        found = merge_topk([names], [torch.where(missing, torch.inf, d)], task.k)
        ids.append(found[0])
        distances.append(found[1])
    return torch.cat(ids), torch.cat(distances)


def _search_again(
    task: Search, queries: Int64[Tensor, " m"], farthest: Float64[Tensor, " m"]
) -> Found:
    """Rank what a float64 filter cannot exclude, given the k-th distance found so far."""
    limits = task.filter.limits(farthest)[:, None]
    ids = torch.full((queries.shape[0], task.k), -1, device=queries.device)
    distances = torch.full_like(ids, torch.inf, dtype=torch.float64)
    step = max(1, PAIR_NUMBERS // (queries.shape[0] * max(1, task.bank.rows.shape[1])))
    for start, keys in _key_blocks(task, queries, torch.float64):
        for first in range(0, keys.shape[1], step):
            near = keys[:, first : first + step] <= limits
            at = torch.arange(first, first + near.shape[1], device=keys.device) + start
            row, col = near.nonzero(as_tuple=True)
            block = torch.full_like(near, torch.inf, dtype=torch.float64)
            block[row, col] = _distances(task, task.queries[queries[row]], task.bank.rows[at[col]])
            names = torch.where(near, task.bank.ids[at], -1)
            ids, distances = merge_topk([ids, names], [distances, block], task.k)
    return ids, distances


def _distances(task: Search, a: Float32[Tensor, "... D"], b: Float32[Tensor, "... D"]) -> Tensor:
    return canonical_distances(
        a, b, "inner_product" if task.filter.frame.is_product else "euclidean"
    )
