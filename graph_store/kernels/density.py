"""Density of nodes: how similar they are to their neighbours."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor

from .rows import tree_sum


def density(
    similarity: Float[Tensor, "n k"], neighbor_ids: Int64[Tensor, "n k"]
) -> Float32[Tensor, " n"]:
    """Mean similarity to the existing neighbours, 0 where there is none.

    rho_u = 1/|N(u)| sum_{v in N(u)} p_uv: DAG (Li et al., CVPR 2020), eq. 3. Summed in float64 in
    a fixed order and rounded once, so that nodes are ranked alike on any number of shards.
    """
    exists = neighbor_ids >= 0
    total = tree_sum(torch.where(exists, similarity.to(torch.float64), 0.0))
    return (total / exists.sum(1).clamp(min=1)).to(torch.float32)
