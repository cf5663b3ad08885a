"""Rows of zeros under the cosine: they have no direction, so their cosine with any row is 0.

Among unit rows that is a distance of sqrt(2), also between two of them, which no search over rows
can find. They are left out of the search and put into its result.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from .knn import Found, merge_topk

ZERO_DISTANCE = math.sqrt(2.0)


def is_zero(rows: Float32[Tensor, "n D"]) -> Bool[Tensor, " n"]:
    """Rows that have no direction."""
    return (rows == 0).all(1)


def add_zero_rows(
    found: tuple[Int64[Tensor, "s k"], Float64[Tensor, "s k"]],
    searched: Bool[Tensor, " m"],
    query_ids: Int64[Tensor, " m"],
    zero_ids: Int64[Tensor, " z"],
    all_ids: Int64[Tensor, " a"],
    k: int,
) -> Found:
    """Neighbours among all rows, from those of the other rows among each other.

    Args:
        found: What the search found for the queries that are `searched`; the others are zeros.
        query_ids: Nodes that the queries are, -1 for none.
        zero_ids: Ascending ids of the rows of zeros; of many, the first k + 1 are enough.
        all_ids: Ascending ids of all rows; the first k + 1 are enough.
    """
    ids = torch.full((len(query_ids), k), -1, device=query_ids.device)
    distances = torch.full_like(ids, torch.inf, dtype=torch.float64)
    ids[searched], distances[searched] = (part.to(ids.device) for part in found)
    if bool(searched.all()) and not len(zero_ids):
        return ids, distances
    # One more than k, because a query is not its own neighbour.
    for queries, others in ((searched, zero_ids[: k + 1]), (~searched, all_ids[: k + 1])):
        offered = others.expand(int(queries.sum()), -1)
        offered = torch.where(offered == query_ids[queries, None], -1, offered)
        at = torch.full_like(offered, ZERO_DISTANCE, dtype=torch.float64)
        merged = merge_topk([ids[queries], offered], [distances[queries], at], k)
        ids[queries], distances[queries] = merged
    return ids, distances
