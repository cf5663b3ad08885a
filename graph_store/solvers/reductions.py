"""Reductions over the nodes of all shards."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

Reduction = Callable[[Tensor], Tensor]
"""Of a tensor over the shards; the identity in one process."""


def largest(x: Float[Tensor, " n"], all_max: Reduction) -> Float[Tensor, "1"]:
    """Largest number on any shard, at least 0. Shards may have none."""
    return all_max(torch.cat([x, x.new_zeros(1)]).amax(0, keepdim=True))
