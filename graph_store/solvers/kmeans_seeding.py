"""Starting centers for k-means, the same however rows are split, ordered or multiplied.

k-means++ (Arthur and Vassilvitskii, SODA 2007): the first center is a row drawn uniformly, each
next one a row drawn with probability proportional to D^2, its squared distance from the nearest
center so far. Greedy, as in scikit-learn: of several rows drawn, the one that leaves the smallest
sum of D^2 (the first drawn of equals).

Draws are races of all shards' rows (`races`), by hashes of (seed, step, trial, node id). Distances
are exact: rows are shifted to the first center and rounded to about 21 bits (`whole_rows`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ..kernels.fixed_point import Grid
from ..kernels.races import race
from ..kernels.races_compiled import WORD
from ..kernels.whole_rows import WholeRows
from .reductions import Reduction

_NOBODY = 1 << 62


@dataclass(frozen=True)
class OwnRows:
    """Rows of one shard that take part, and how all shards are reached."""

    features: Float[Tensor, "n D"]
    node_ids: Int64[Tensor, " n"]
    grid: Grid
    all_sum: Reduction
    all_max: Reduction


def plusplus(
    own: OwnRows, num_clusters: int, *, seed: int, num_trials: int | None = None
) -> Float64[Tensor, "K D"]:
    """Rows to start from, on the grid.

    Where fewer than K rows differ, the rest are rows equal to others, drawn uniformly.

    Args:
        num_clusters: At most the number of rows of all shards.
        num_trials: Rows drawn per center; None: 2 + log K, as in scikit-learn.

    Cost:
        Per center a product of the own rows with `num_trials` others and four collectives.
    """
    trials = 2 + int(math.log(num_clusters)) if num_trials is None else num_trials
    is_left = torch.ones_like(own.node_ids, dtype=torch.bool)
    drawn, ids = draw(own, seed, 0, 1, is_left.to(torch.float64))
    rows = WholeRows(own.features, own.grid, drawn[0], own.all_max)
    centers = []
    for step in range(1, num_clusters + 1):
        sums = [(high << WORD) + low for high, low in own.all_sum(rows.offer(drawn)).tolist()]
        best = sums.index(min(sums))
        rows.take(best)
        centers.append(drawn[best])
        is_left &= torch.ne(own.node_ids, ids[best])
        if step < num_clusters:
            weights = rows.nearest if sums[best] else is_left.to(torch.float64)
            drawn, ids = draw(own, seed, step, trials, weights)
    return torch.stack(centers)


def draw(
    own: OwnRows, seed: int, step: int, trials: int, weights: Float64[Tensor, " n"]
) -> tuple[Float64[Tensor, "trials D"], Int64[Tensor, " trials"]]:
    """Rows drawn from all shards with the given weights, on the grid, and their ids."""
    keys, at = race(seed, step, trials, own.node_ids, weights)
    is_first = torch.eq(keys, -own.all_max(-keys)) & (at >= 0)
    ids = torch.full_like(at, _NOBODY)
    ids[is_first] = own.node_ids[at[is_first]]
    winners = -own.all_max(-ids)
    mine = is_first & torch.eq(ids, winners)
    rows = torch.zeros(trials, own.grid.dim, dtype=torch.int64, device=own.features.device)
    rows[mine] = own.grid.rows(own.features[at[mine]]).to(torch.int64)
    return own.all_sum(rows).to(torch.float64), winners
