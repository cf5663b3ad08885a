"""The graph of one process: all rows live here and the collectives are plain indexing."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from .affinity import (
    LocalAffinity,
    check_kind,
    power_affinity,
    scatter_rows,
    self_tuning_affinity,
)
from .store import Metric
from .view import AffinityKind, Reduce


class LocalGraphView:
    """`GraphView` over whole tensors. Neighbours with id -1 do not exist.

    Args:
        metric: Of the graph; a "euclidean" one has no similarities to make "power" weights of.
    """

    def __init__(
        self,
        neighbor_ids: Int64[Tensor, "n k"],
        similarity: Float[Tensor, "n k"],
        distances: Float[Tensor, "n k"],
        metric: Metric = "cosine",
    ) -> None:
        self.metric = metric
        self.num_nodes = neighbor_ids.shape[0]
        self.node_ids = torch.arange(self.num_nodes, device=neighbor_ids.device)
        self.neighbor_ids = neighbor_ids
        self.similarity = similarity
        self.distances = distances

    def affinity(self, kind: AffinityKind, *, gamma: float = 1.0) -> LocalAffinity:
        check_kind(kind, self.metric)
        if kind == "power":
            return power_affinity(self.neighbor_ids, self.similarity, gamma)
        return self_tuning_affinity(self.neighbor_ids, self.distances)

    def gather(self, x: Shaped[Tensor, "n ..."], ids: Int64[Tensor, " m"]) -> Tensor:
        return x[ids]

    def scatter(
        self, x: Shaped[Tensor, "m ..."], ids: Int64[Tensor, " m"], out: Tensor, reduce: Reduce
    ) -> Tensor:
        return scatter_rows(x, ids, out, reduce)

    def all_sum(self, x: Tensor) -> Tensor:
        return x

    def all_max(self, x: Tensor) -> Tensor:
        return x
