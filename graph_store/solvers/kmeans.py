"""k-means over feature rows that are spread over shards.

The result is a function of rows, node ids and seed, to the last bit: not of the number of shards,
the order of rows, the number of threads or the kind of processor. Sums of rows and the objective
are exact (`kernels.fixed_point`), near ties are compared by a distance of fixed order, and draws go
by node id (`kmeans_seeding`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ..kernels.fixed_point import make_grid
from .kmeans_lloyd import Iteration, lloyd
from .kmeans_seeding import OwnRows, plusplus
from .reductions import Reduction

# Squares of larger numbers could not be added.
_LARGEST = 1e150
_NOBODY = 1 << 62


@dataclass(frozen=True)
class KMeans:
    """Clusters of the rows of all shards.

    Attributes:
        labels: Cluster of each own row; -1 for rows that are not present.
        centers: Means of the clusters, in float64.
        objective: Sum of squared distances of all rows from their centers.
        objectives: After every iteration; never rises.
        iterations: How often rows were assigned to centers.
        converged: Whether the last time no row changed its cluster.
    """

    labels: Int64[Tensor, " n"]
    centers: Float64[Tensor, "K D"]
    objective: float
    objectives: Float64[Tensor, " iterations"]
    iterations: int
    converged: bool


def kmeans(
    features: Float[Tensor, "n D"],
    num_clusters: int,
    *,
    seed: int,
    node_ids: Int64[Tensor, " n"] | None = None,
    present: Bool[Tensor, " n"] | None = None,
    all_sum: Reduction = lambda x: x,
    all_max: Reduction = lambda x: x,
    init: Float[Tensor, "K width"] | None = None,
    max_iter: int = 100,
    num_trials: int | None = None,
    on_iteration: Callable[[Iteration], None] | None = None,
) -> KMeans:
    """Split rows into clusters around means by Lloyd's iteration, started by greedy k-means++.

    Minimises sum_i |x_i - c_l(i)|^2 over labels l and centers c (Lloyd, IEEE Trans. Inf. Theory
    1982): each row to its nearest center, of equally near ones the lowest; each center to the mean
    of its rows; until no row changes its cluster. Rows are taken as they are: normalise them before
    if they are to be.

    A cluster that loses its last row gets the row of all shards that is farthest from its center
    (the lowest id of equals), unless it is alone in its cluster. Where fewer than K rows differ,
    the clusters that are left over stay empty.

    Args:
        features: float32 or float64; other dtypes become float32.
        node_ids: Global ids of own rows, distinct over all shards; None: 0, 1, ...
        present: Rows that take part; None: all.
        all_sum, all_max: Reductions over shards, exact for int64; the identity in one process.
        init: Centers to start from, the same on all shards.
        max_iter: At most so many times rows are assigned and centers moved. Then rows are assigned
            once more.
        num_trials: Candidates per center of k-means++; None: 2 + log K. 1: not greedy.
        on_iteration: Told how each iteration went.

    Raises:
        ValueError: A feature is NaN, infinite or beyond 1e150 (the node is named); fewer rows than
            clusters; `init` has another shape. All shards raise alike, but for wrong shapes.

    Cost:
        An iteration takes at most n K D multiplications and one `all_sum` of K (D + 2) + 3
        integers. Memory: a copy of the rows, n K / 8 float32 bounds, and blocks.
    """
    ids = torch.arange(len(features), device=features.device) if node_ids is None else node_ids
    _check_arguments(features, num_clusters, init, max_iter, num_trials)
    x = features.detach()
    x = x if x.dtype in (torch.float32, torch.float64) else x.to(torch.float32)
    start = None if init is None else init.detach().to(x.device, torch.float64)
    is_in = torch.ones_like(ids, dtype=torch.bool) if present is None else present
    if not bool(is_in.all()):
        x, ids = x[is_in], ids[is_in]
    own = _own_rows(x, ids, num_clusters, start, all_sum, all_max)
    if start is None:
        centers = plusplus(own, num_clusters, seed=seed, num_trials=num_trials)
    else:
        centers = start * own.grid.scale
    found = lloyd(own, centers, max_iter, on_iteration)
    labels = torch.full(is_in.shape, -1, device=x.device)
    labels[is_in] = found.labels
    return KMeans(
        labels=labels,
        centers=found.centers / own.grid.scale,
        objective=found.objectives[-1],
        objectives=torch.tensor(found.objectives, dtype=torch.float64),
        iterations=len(found.objectives),
        converged=found.converged,
    )


def match_clusters(
    labels: Int64[Tensor, " n"],
    last_labels: Int64[Tensor, " n"],
    num_clusters: int,
    *,
    all_sum: Reduction = lambda x: x,
) -> Int64[Tensor, " n"]:
    """Rename clusters so that as many rows as possible keep the number that they had.

    An assignment problem (Kuhn 1955) on the table of how many rows of all shards are in cluster a
    now and were in b. Of equally good namings, one that renames few clusters.

    Args:
        labels, last_labels: Below `num_clusters`; -1: none. Rows with none in either do not count.

    Raises:
        ValueError: A label is out of range; on all shards.

    Cost:
        K^3 operations and one `all_sum` of K^2 + 1 integers.
    """
    k = num_clusters
    bad = ((labels < -1) | (labels >= k) | (last_labels < -1) | (last_labels >= k)).sum()
    both = (labels >= 0) & (last_labels >= 0) & (labels < k) & (last_labels < k)
    pairs = torch.bincount(labels[both] * k + last_labels[both], minlength=k * k)
    counts = all_sum(torch.cat([pairs, bad[None]]))
    if int(counts[-1]):
        raise ValueError(
            f"{int(counts[-1])} nodes have a cluster outside -1..{k - 1}; give labels of two "
            f"clusterings into num_clusters = {k}"
        )
    # Here, because it is half of what a shard would import, and only this needs it.
    from scipy.optimize import linear_sum_assignment

    table = counts[:-1].reshape(k, k) * (k + 1) + torch.eye(k, dtype=torch.int64).to(labels.device)
    names = torch.from_numpy(linear_sum_assignment(table.cpu().numpy(), maximize=True)[1])
    renamed = names.to(labels.device)[labels.clamp(min=0)]
    return torch.where(labels >= 0, renamed, labels)


def _check_arguments(
    features: Tensor, num_clusters: int, init: Tensor | None, max_iter: int, trials: int | None
) -> None:
    for name, value in (("num_clusters", num_clusters), ("max_iter", max_iter)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if trials is not None and trials < 1:
        raise ValueError(f"num_trials must be at least 1 or None, got {trials}")
    if features.shape[1] == 0:
        raise ValueError("features have no columns; give rows with at least one number")
    if init is not None and tuple(init.shape) != (num_clusters, features.shape[1]):
        raise ValueError(
            f"init must be num_clusters x D = {(num_clusters, features.shape[1])}, "
            f"got {tuple(init.shape)}"
        )


def _own_rows(
    x: Float[Tensor, "n D"],
    ids: Int64[Tensor, " n"],
    num_clusters: int,
    start: Float64[Tensor, "K D"] | None,
    all_sum: Reduction,
    all_max: Reduction,
) -> OwnRows:
    """Check the rows of all shards, and choose the grid that all of them use."""
    num_rows = int(all_sum(torch.full((1,), len(x), device=x.device)))
    if num_clusters > num_rows:
        raise ValueError(
            f"{num_clusters} clusters need at least as many rows, but {num_rows} are present; "
            "lower num_clusters"
        )
    if start is not None and not bool(start.abs().le(_LARGEST).all()):
        raise ValueError(f"init has an entry that is NaN, infinite or beyond {_LARGEST:g}")
    largest = torch.zeros(1, dtype=torch.float64, device=x.device)
    for rows in (x, start):
        if rows is not None and rows.numel():
            largest = torch.maximum(largest, torch.maximum(rows.amax(), -rows.amin()))
    # NaN is not handed on: what a maximum makes of it is up to the reduction.
    is_bad = ~(largest <= _LARGEST)
    if int(all_max(is_bad.to(torch.int64))):
        at_fault = ids[~(x.to(torch.float64).abs() <= _LARGEST).all(1)]
        lowest = torch.cat([at_fault, at_fault.new_full((1,), _NOBODY)]).amin(0, keepdim=True)
        raise ValueError(
            f"node {-int(all_max(-lowest))} has a feature that is NaN, infinite or beyond "
            f"{_LARGEST:g}; repair it, or leave the node out by `present`"
        )
    grid = make_grid(float(all_max(largest)), num_rows, x.shape[1])
    return OwnRows(x, ids, grid, all_sum, all_max)
