"""Where refinement finds candidates for nodes whose lists lead nowhere: pivots and their cells.

About 4 sqrt(N) nodes, drawn by a seed, are pivots. A node that has moved far, or has no list, is
offered the pivots nearest to it; a graph that starts from nothing offers each node others of the
same cell, the nodes that share their nearest pivot. Both come from exact searches among few rows,
so they do not depend on the number of shards or threads, as projections by matrix products would.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor

from .exchange import Exchange
from .kernels.knn import Metric, make_bank, search_bank
from .kernels.scaling import Bank
from .recall import choose_sample


def nearest_pivots(
    exchange: Exchange,
    rows: Float32[Tensor, "n D"],
    present: Bool[Tensor, " n"],
    wanted: Bool[Tensor, " n"],
    num_pivots: int,
    seed: int,
    metric: Metric = "euclidean",
) -> Int64[Tensor, "n p"]:
    """Ids of the pivots nearest to each wanted own node; -1 for the other nodes. Collective."""
    pivots = _pivots(exchange, rows, present, seed, metric)
    found = torch.full((rows.shape[0], num_pivots), -1)
    own_ids = torch.arange(rows.shape[0]) + exchange.start
    if wanted.any():
        found[wanted] = search_bank(pivots, rows[wanted], num_pivots, own_ids[wanted])[0]
    return found


def cell_mates(
    exchange: Exchange,
    rows: Float32[Tensor, "n D"],
    present: Bool[Tensor, " n"],
    num_mates: int,
    seed: int,
    metric: Metric = "euclidean",
) -> Int64[Tensor, "n m"]:
    """Others of each own node's cell, -1 where there are fewer or the node is absent. Collective.

    Cost:
        4 sqrt(N) n D multiplications; every shard holds one number per node of all shards.
    """
    pivots = _pivots(exchange, rows, present, seed, metric)
    cells = torch.full((rows.shape[0],), -1)
    if present.any() and pivots.rows.shape[0]:
        cells[present] = search_bank(pivots, rows[present], 1)[0][:, 0]
    whole = exchange.whole(cells)
    order = whole.argsort(stable=True)
    position = torch.empty_like(order)
    position[order] = torch.arange(order.shape[0])
    sorted_cells = whole[order]
    first = torch.searchsorted(sorted_cells, cells)
    size = torch.searchsorted(sorted_cells, cells, right=True) - first
    place = position[exchange.start : exchange.start + rows.shape[0]] - first
    step = torch.arange(1, num_mates + 1)
    mates = order[first[:, None] + (place[:, None] + step) % size.clamp(min=1)[:, None]]
    return torch.where((step < size[:, None]) & (cells >= 0)[:, None], mates, -1)


def _pivots(
    exchange: Exchange,
    rows: Float32[Tensor, "n D"],
    present: Bool[Tensor, " n"],
    seed: int,
    metric: Metric,
) -> Bank:
    ids = choose_sample(exchange.num_nodes, 4 * math.isqrt(exchange.num_nodes) + 1, seed)
    (table, is_there), places = exchange.fetch([rows, present], ids)
    exists = is_there[places]
    return make_bank(table[places[exists]], ids[exists], metric)
