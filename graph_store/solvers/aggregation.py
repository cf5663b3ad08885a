"""Aggregates of a weighted graph: small connected groups of nodes, the coarse level of the solvers.

Group g grows from a seed node; in each round a node without a group joins that of its strongest
neighbour with one. Seeds are spread evenly over the node ids, so groups depend on nothing but the
graph, and are the same for any number of shards.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Int64
from torch import Tensor

from ..kernels.row_joins import at_heaviest
from ..view import Affinity

# Below, plain conjugate gradients are as fast; above, the coarse matrix's inverse costs more than
# it saves.
MIN_NODES = 2_000
MAX_AGGREGATES = 400


def num_aggregates(num_nodes: int) -> int:
    """How many groups pay for a graph of this size; 0 = none."""
    return 0 if num_nodes < MIN_NODES else min(MAX_AGGREGATES, 2 * math.isqrt(num_nodes))


def aggregates(w: Affinity, count: int) -> Int64[Tensor, " n"]:
    """Group of each own node, in 0..count-1; -1 where no path leads to a seed.

    Cost:
        One exchange of group numbers per round; as many rounds as the groups' radius in edges.
    """
    ids = w.node_ids
    seeds = torch.arange(count, device=ids.device) * w.num_nodes // count
    at = torch.searchsorted(seeds, ids).clamp(max=count - 1)
    group = torch.where(seeds[at] == ids, at, -1)
    joined = int(w.all_sum((group >= 0).sum()))
    while True:
        group = torch.where(group >= 0, group, at_heaviest(w.csr, w.extend(group)))
        grown = int(w.all_sum((group >= 0).sum()))
        if grown == joined:
            return group
        joined = grown
