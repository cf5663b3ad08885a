"""Numbers that judge predictions, from counts that add up over ranks."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor


def confusion_matrix(
    truth: Int64[Tensor, " b"], predicted: Int64[Tensor, " b"], num_classes: int
) -> Int64[Tensor, "C C"]:
    """Counts by (true class, predicted class); rows with an unknown truth (-1) are left out."""
    known = truth >= 0
    cells = truth[known] * num_classes + predicted[known]
    return torch.bincount(cells, minlength=num_classes**2).view(num_classes, num_classes)


def accuracy(confusion: Int64[Tensor, "C C"]) -> float:
    """Share of the counted samples on the diagonal; nan if there are none."""
    total = int(confusion.sum())
    return float(confusion.diagonal().sum()) / total if total else float("nan")
