"""What a row is trained towards: given labels before pseudo-labels, pseudo-labels before nothing.

Weights are in [0, 1]; 0 means that the row is not trained on.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..graph_store.view import PseudoLabels


def onehot(
    labels: Int64[Tensor, " n"], num_classes: int, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n C"]:
    """One-hot rows; zero rows for label -1."""
    out = torch.zeros(labels.shape[0], num_classes, dtype=dtype, device=labels.device)
    known = labels >= 0
    return out.scatter_(1, labels.clamp(min=0)[:, None], known[:, None].to(dtype))


def targets_and_weight(
    labels: Int64[Tensor, " b"], pseudo: PseudoLabels | None, num_classes: int
) -> tuple[Float[Tensor, "b C"], Float[Tensor, " b"]]:
    """Targets of a batch: one-hot with weight 1 where the label is given, else the pseudo-label.

    Rows without either (`pseudo` None) are zero and have weight 0.
    """
    targets = onehot(labels, num_classes)
    labeled = labels >= 0
    weight = labeled.to(targets.dtype)
    if pseudo is None:
        return targets, weight
    targets = torch.where(labeled[:, None], targets, pseudo.probs.to(targets))
    return targets, torch.where(labeled, weight, pseudo.weight.to(weight))


def normalize_rows_to_one(scores: Float[Tensor, "n C"]) -> Float[Tensor, "n C"]:
    """Rows divided by their sums; rows that sum to 0 stay 0."""
    total = scores.sum(dim=1, keepdim=True)
    return torch.where(total > 0, scores / total.clamp(min=torch.finfo(scores.dtype).tiny), 0.0)
