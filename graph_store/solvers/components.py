"""Connected components of a weighted graph, in one process or over shards."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ..kernels.row_joins import row_minimum
from ..view import Affinity


def components(w: Affinity) -> Int64[Tensor, " n"]:
    """For each own node the smallest node id in its component.

    Every node points at a node of its component with a smaller id; pointers are shortened and roots
    hooked on one another until nothing changes: Zhang, Azad and Hu, "FastSV", SIAM PP 2020.

    Cost:
        About log N rounds, each with one exchange of the halo, one gather and one scatter.
    """
    pointer = w.node_ids
    while True:
        grand = w.gather(pointer, pointer)
        seen = torch.minimum(row_minimum(w.csr, w.extend(grand)), grand)
        # The root that a node points at learns of a smaller one too ("amax" of the negatives).
        hooked = -w.scatter(-seen, pointer, -pointer, "amax")
        shorter = torch.minimum(torch.minimum(hooked, seen), pointer)
        if not int(w.all_sum((shorter != pointer).sum())):
            return pointer
        pointer = shorter


def sum_by_component(
    w: Affinity, component: Int64[Tensor, " n"], x: Float[Tensor, "n C"]
) -> Float[Tensor, "n C"]:
    """For each own node the sum of `x` over its component; two exchanges on shards."""
    return w.gather(w.scatter(x, component, torch.zeros_like(x), "sum"), component)


def without_means(
    w: Affinity, component: Int64[Tensor, " n"], u: Float64[Tensor, "n C"]
) -> Float64[Tensor, "n C"]:
    """`u` less its degree-weighted mean over each component: no part in the null space of L."""
    degrees = w.degrees.to(torch.float64)[:, None]
    sums = sum_by_component(w, component, torch.cat([degrees * u, degrees], dim=1))
    return u - sums[:, :-1] / sums[:, -1:].clamp(min=1e-300)
