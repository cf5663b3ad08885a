"""Views of a batch's rows where labeled and unlabeled ones are augmented differently."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from .method import Batch, ViewName


def views_of(batch: Batch, rows: Bool[Tensor, " b"], *, unlabeled: ViewName) -> Tensor:
    """Inputs of the chosen rows in their order: labeled ones weak, unlabeled ones as told."""
    labeled = batch.labels >= 0
    others = rows & ~labeled
    if unlabeled == "weak" or not bool(others.any()):
        return batch.view("weak", rows)
    weak = rows & labeled
    order = torch.cat([weak.nonzero()[:, 0], others.nonzero()[:, 0]]).argsort()
    return torch.cat([batch.view("weak", weak), batch.view(unlabeled, others)])[order]
