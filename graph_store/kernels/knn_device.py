"""Exact kNN in plain torch operations, for accelerators: products, `topk`, canonical ranking."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from .knn_cpu import PAD, Candidates, Found, Search
from .precision import exact_products
from .rows import canonical_distances

QUERY_BLOCK = 4096
BANK_BLOCK = 16384
# Pairs whose float64 differences are held at once.
PAIR_NUMBERS = 1 << 24


def search(task: Search) -> Found:
    """The k nearest of every query by (canonical distance, id); -1/inf where there are fewer."""
    found = [
        _search_block(task, slice(start, start + QUERY_BLOCK))
        for start in range(0, task.queries.shape[0], QUERY_BLOCK)
    ]
    if not found:
        empty = task.queries.new_empty(0, task.k)
        return empty.to(torch.int64), empty.to(torch.float64)
    return torch.cat([ids for ids, _ in found]), torch.cat([d for _, d in found])


def _search_block(task: Search, own: slice) -> Found:
    with exact_products(task.queries.device):
        lists = _preselect(task, own)
        ids, distances = _rerank(task, own, lists)
        certain = task.filter.certain(distances[:, -1], lists.keys[:, -1])
        for part in torch.split((~certain).nonzero()[:, 0], 256):
            if part.numel():
                ids[part], distances[part] = _search_again(
                    task, part + own.start, distances[part, -1]
                )
    return ids, distances


def _preselect(task: Search, own: slice) -> Candidates:
    size = min(task.k + PAD, max(1, task.bank.rows.shape[0]))
    num_queries = task.filter.queries.rows[own].shape[0]
    keys = task.queries.new_full((num_queries, size), torch.inf)
    positions = torch.zeros(num_queries, size, dtype=torch.int32, device=keys.device)
    queries = torch.arange(own.start, own.start + num_queries)
    for start, block in _key_blocks(task, queries, torch.float32):
        best = block.topk(min(size, block.shape[1]), dim=1, largest=False)
        both = torch.cat([keys, best.values], 1)
        where = torch.cat([positions, (best.indices + start).to(torch.int32)], 1)
        keys, slots = both.topk(size, dim=1, largest=False, sorted=True)
        positions = where.gather(1, slots)
    return Candidates(keys, positions)


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


def _rerank(task: Search, own: slice, lists: Candidates) -> Found:
    ids, distances = [], []
    step = max(1, PAIR_NUMBERS // (lists.keys.shape[1] * max(1, task.bank.rows.shape[1])))
    queries = task.queries[own]
    for start in range(0, queries.shape[0], step):
        part = slice(start, start + step)
        at = lists.positions[part].to(torch.int64)
        missing = torch.isinf(lists.keys[part])
        query = queries[part, None].expand(-1, at.shape[1], -1)
        d = _distances(task, query, task.bank.rows[at])
        found = _nearest(
            torch.where(missing, -1, task.bank.ids[at]), torch.where(missing, torch.inf, d), task.k
        )
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
            ids, distances = _nearest(
                torch.cat([ids, names], 1), torch.cat([distances, block], 1), task.k
            )
    return ids, distances


def _distances(task: Search, a: Float32[Tensor, "... D"], b: Float32[Tensor, "... D"]) -> Tensor:
    return canonical_distances(
        a, b, "inner_product" if task.filter.frame.is_product else "euclidean"
    )


def _nearest(ids: Int64[Tensor, "m c"], distances: Float64[Tensor, "m c"], k: int) -> Found:
    from .knn import merge_topk

    return merge_topk([ids], [distances], k)
