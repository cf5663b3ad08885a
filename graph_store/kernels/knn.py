"""Exact k nearest neighbours of rows, blocked: GEMM filters, the canonical distance decides.

Neighbours are ordered by (canonical distance, id); see `rows.canonical_distances`. Products of
float32 rows only preselect k + pad candidates per query. With N the largest length of a row and u
the unit round-off, a float32 value |x|^2/2 + |y|^2/2 - xy is within `guard` = 2 (D + 10) u N^2 of
the true half squared distance. A query whose k-th canonical distance is not below the last
preselected value by that guard is searched again, and then every row within the guard is ranked.
So results equal a brute force over canonical distances, ids and order.

Distances are returned in float64 (for "inner_product": minus the inner product). Merge them
in float64, and round to float32 only what is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from .rows import (
    Metric,
    canonical_distances,
    normalize_rows,
    prepare_rows,
    similarity_from_distance,
    tree_sum,
)

__all__ = [
    "Metric",
    "canonical_distances",
    "knn_blocked",
    "knn_self_join",
    "merge_topk",
    "normalize_rows",
    "prepare_rows",
    "similarity_from_distance",
    "tree_sum",
]

Found = tuple[Int64[Tensor, "m k"], Float64[Tensor, "m k"]]


def knn_blocked(
    queries: Float32[Tensor, "m D"],
    bank: Float32[Tensor, "n D"],
    k: int,
    *,
    query_ids: Int64[Tensor, " m"] | None = None,
    bank_ids: Int64[Tensor, " n"] | None = None,
    metric: Metric = "euclidean",
    query_block: int = 1024,
    bank_block: int = 4096,
) -> Found:
    ids = torch.arange(bank.shape[0], device=bank.device) if bank_ids is None else bank_ids
    out_ids, out_distances = [], []
    step = max(1, (1 << 24) // max(1, bank.shape[0] * bank.shape[1]))
    for start in range(0, queries.shape[0], step):
        d = canonical_distances(queries[start : start + step, None], bank[None], metric)
        i = ids.expand(d.shape).clone()
        if query_ids is not None:
            own = query_ids[start : start + step, None] == i
            d[own], i[own] = torch.inf, -1
        i, d = merge_topk([i], [d], k)
        out_ids.append(i)
        out_distances.append(d)
    if not out_ids:
        empty = torch.empty(0, k, device=bank.device)
        return empty.to(torch.int64), empty.to(torch.float64)
    return torch.cat(out_ids), torch.cat(out_distances)


def knn_self_join(
    rows: Float32[Tensor, "n D"],
    k: int,
    ids: Int64[Tensor, " n"] | None = None,
    *,
    metric: Metric = "euclidean",
) -> Found:
    own = torch.arange(rows.shape[0], device=rows.device) if ids is None else ids
    return knn_blocked(rows, rows, k, query_ids=own, bank_ids=own, metric=metric)


def merge_topk(
    ids: Sequence[Int64[Tensor, "m _"]], distances: Sequence[Float64[Tensor, "m _"]], k: int
) -> Found:
    """The k nearest of several candidate lists per query, by (distance, id).

    Independent of the order of the lists. Candidates with id -1 are ignored; results are padded
    with -1/inf. A candidate must not occur in two lists.
    """
    all_ids, all_distances = torch.cat(list(ids), 1), torch.cat(list(distances), 1)
    all_distances = torch.where(all_ids < 0, torch.inf, all_distances)
    if all_ids.shape[1] < k:
        missing = (all_ids.shape[0], k - all_ids.shape[1])
        all_ids = torch.cat([all_ids, all_ids.new_full(missing, -1)], 1)
        all_distances = torch.cat([all_distances, all_distances.new_full(missing, torch.inf)], 1)
    by_id = all_ids.argsort(dim=1)
    by_distance = all_distances.gather(1, by_id).argsort(dim=1, stable=True)
    order = by_id.gather(1, by_distance)[:, :k]
    return all_ids.gather(1, order), all_distances.gather(1, order)
