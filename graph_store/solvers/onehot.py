"""Given labels as the right-hand sides of the solvers."""

from __future__ import annotations

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ..view import Affinity


def onehot(
    labels: Int64[Tensor, " n"], w: Affinity, num_classes: int | None = None
) -> Float64[Tensor, "n C"]:
    """One row per own node, zero for unlabeled nodes (the papers' Y).

    Raises:
        ValueError: Another number of labels than of own rows, a label outside 0..C-1, or no
            labeled node on any shard.
    """
    if labels.shape[0] != w.degrees.shape[0]:
        raise ValueError(f"got {labels.shape[0]} labels for {w.degrees.shape[0]} nodes")
    largest = int(labels.max()) if labels.numel() else -1
    if num_classes is None:
        if labels.shape[0] != w.num_nodes:
            raise ValueError("num_classes must be given where the nodes are spread over shards")
        num_classes = largest + 1
    if largest >= num_classes:
        raise ValueError(f"label {largest} is not below num_classes = {num_classes}")
    labeled = labels >= 0
    if int(w.all_sum(labeled.sum())) == 0:
        raise ValueError("no node is labeled; the solvers need at least one label >= 0")
    y = torch.zeros(labels.shape[0], num_classes, dtype=torch.float64, device=labels.device)
    y[labeled, labels[labeled]] = 1
    return y
