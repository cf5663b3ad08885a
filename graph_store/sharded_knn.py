"""Exact k nearest neighbours of the own rows over the rows of all shards.

The shards' rows are sent round in turn, block by block; each shard searches its own rows against
them and merges by (distance, id). Distances are canonical (`kernels.rows`), so neither the blocks
nor the number of shards can be seen in the result.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from .index import Backend, make_index
from .kernels.knn import knn_self_join, merge_topk
from .sharded_view import ShardGroup

# Rows of another shard that are held at once.
_BLOCK = 1 << 17

Found = tuple[Int64[Tensor, "m k"], Float64[Tensor, "m k"]]


def knn_over_shards(
    rows: Float32[Tensor, "m D"],
    ids: Int64[Tensor, " m"],
    k: int,
    *,
    group: ShardGroup | None,
    backend: Backend = "auto",
    block: int = _BLOCK,
) -> Found:
    """Neighbours of the own prepared rows, -1/inf where fewer than k others exist. Collective.

    Args:
        ids: Node ids of the rows; a node is not its own neighbour.
        group: None in one process.

    Cost:
        Every shard receives the rows of all others once. Each computes the distances inside its
        own part once per pair and those to other parts once per own row.
    """
    best = _search_own(rows, ids, k, backend)
    if group is None:
        return best
    counts = [int(c) for c in torch.cat(group.all_gather(torch.tensor([len(ids)])))]
    for root, count in enumerate(counts):
        for start in range(0, count, block):
            width = min(block, count - start)
            own = root == group.rank
            part = slice(start, start + width)
            other_ids = group.broadcast(ids[part] if own else ids.new_empty(width), root)
            buffer = rows[part] if own else rows.new_empty(width, rows.shape[1])
            other = group.broadcast(buffer, root)
            if not own:
                found = make_index(backend, other, other_ids).search(rows, k)
                best = merge_topk([best[0], found[0]], [best[1], found[1]], k)
    return best


def _search_own(
    rows: Float32[Tensor, "m D"], ids: Int64[Tensor, " m"], k: int, backend: Backend
) -> Found:
    if backend in ("faiss", "ivf"):
        return make_index(backend, rows, ids).search(rows, k, ids)
    return knn_self_join(rows, k, ids)
