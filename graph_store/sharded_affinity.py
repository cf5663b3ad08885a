"""Own rows of the symmetric weights of a sharded graph; a product exchanges only the halo.

The halo of a shard are the nodes of other shards that its rows have weights to. Columns index a
buffer of own and halo rows that is sorted by node id, so that every row adds in the order of one
process and has its bits.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from .affinity import bandwidths, check_kind, edges, power_weights, self_tuning_weights
from .kernels.csr import Csr, coalesce, row_sums, spmm
from .sharded_view import ShardedGraphView, plan_fetch, sum_over_shards
from .view import AffinityKind, Reduce


class ShardedAffinity:
    """`Affinity` of one shard. Making one takes two exchanges, the halo plan.

    Args:
        csr: Own rows over all nodes: its columns are global node ids.
    """

    def __init__(self, view: ShardedGraphView, csr: Csr) -> None:
        self.num_nodes = view.num_nodes
        self._view = view
        start, stop = view.partition.span(view.group.rank)
        outside = csr.cols[(csr.cols < start) | (csr.cols >= stop)]
        self._plan = plan_fetch(view.group, view.partition, outside)
        halo = self._plan.route.node_ids
        self._num_below = int((halo < start).sum())
        buffer = torch.cat([halo[: self._num_below], view.node_ids, halo[self._num_below :]])
        self.csr = Csr(csr.offsets, torch.searchsorted(buffer, csr.cols), csr.vals, len(buffer))
        self._degrees = row_sums(self.csr)

    @property
    def degrees(self) -> Float[Tensor, " n"]:
        return self._degrees

    def matmul(self, f: Float[Tensor, "n C"]) -> Float[Tensor, "n C"]:
        """Own rows of W F. One exchange of the halo's rows."""
        return spmm(self.csr, self.extend(f))

    @property
    def own_columns(self) -> slice:
        return slice(self._num_below, self._num_below + self.csr.num_rows)

    def extend(self, f: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "num_cols ..."]:
        halo = self._plan.fetch(f)
        return torch.cat([halo[: self._num_below], f, halo[self._num_below :]])

    @property
    def node_ids(self) -> Int64[Tensor, " n"]:
        return self._view.node_ids

    def gather(self, x: Shaped[Tensor, "n ..."], ids: Int64[Tensor, " m"]) -> Tensor:
        return self._view.gather(x, ids)

    def scatter(
        self, x: Shaped[Tensor, "m ..."], ids: Int64[Tensor, " m"], out: Tensor, reduce: Reduce
    ) -> Tensor:
        return self._view.scatter(x, ids, out, reduce)

    def all_sum(self, x: Tensor) -> Tensor:
        return sum_over_shards(self._view.group, x)

    def all_max(self, x: Tensor) -> Tensor:
        return self._view.all_max(x)


def sharded_affinity(
    view: ShardedGraphView, kind: AffinityKind, *, gamma: float
) -> ShardedAffinity:
    """See `GraphView.affinity`. Every edge goes once to the owner of its other end.

    Raises:
        ValueError: No such kind of affinity, or "power" of a Euclidean graph.
    """
    check_kind(kind, view.metric)
    if kind == "power":
        rows, cols, (similarity,) = edges(view.neighbor_ids, view.similarity)
        weights = power_weights(similarity, gamma)
        return ShardedAffinity(view, _symmetrize(view, rows, cols, weights, kind))
    rows, cols, (distances,) = edges(view.neighbor_ids, view.distances)
    eps = bandwidths(view.distances)
    weights = self_tuning_weights(distances, eps[rows], view.gather(eps, cols))
    return ShardedAffinity(view, _symmetrize(view, rows, cols, weights, kind))


def _symmetrize(
    view: ShardedGraphView,
    rows: Int64[Tensor, " e"],
    cols: Int64[Tensor, " e"],
    weights: Float[Tensor, " e"],
    kind: AffinityKind,
) -> Csr:
    """Own rows of A + A^T ("power") or of the union of edges, from own rows of A."""
    owner = view.partition.owner(cols)
    order = owner.argsort(stable=True)
    send = owner.bincount(minlength=view.group.size).tolist()
    receive = view.group.exchange_counts(send)
    ends = torch.stack([cols, view.node_ids[rows]], dim=1)
    reverse = view.group.exchange(ends[order], send, receive)
    reverse_weights = view.group.exchange(weights[order], send, receive)
    num_rows = len(view.node_ids)
    return coalesce(
        torch.cat([rows, reverse[:, 0] - view.start]),
        torch.cat([cols, reverse[:, 1]]),
        torch.cat([weights, reverse_weights]),
        num_rows,
        view.num_nodes,
        "sum" if kind == "power" else "amax",
    )
