"""Agreement of predictions: of a network with its average, and of views of the same rows."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from .losses import prediction_mse, ramp_up
from .method import Batch, NetworkCall


def teacher_consistency(
    logits: Float[Tensor, "b C"], batch: Batch, *, weight: float, rampup_epochs: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Mean Teacher's consistency cost between the student and the teacher.

    The teacher looks at a weak view of its own, drawn after the student's.

    Args:
        logits: The student's, for all rows of the batch.
        weight: Of the cost, when `rampup_epochs` are over.

    Returns:
        What to add to the loss (0 without a weight; then the teacher is not asked), and what to
        log: the cost before it is weighted, and its present weight.
    """
    if weight == 0:
        return logits.new_zeros(()), {}
    assert batch.teacher is not None, "batches of a run bring the teacher"
    cost = prediction_mse(logits, batch.teacher(batch.view("weak")).logits)
    now = weight * ramp_up(batch.epoch, rampup_epochs)
    return now * cost, {"consistency": cost.detach(), "consistency_weight": cost.new_tensor(now)}


def weak_and_strong(
    net: NetworkCall, batch: Batch
) -> tuple[Float[Tensor, "l C"], Float[Tensor, "u C"], Float[Tensor, "u C"] | None]:
    """What FixMatch and its kin compare, in two forward passes.

    The weak unlabeled rows go first, without gradients; then labeled rows (weak) and unlabeled ones
    (strong) together.

    Returns:
        Logits of the labeled rows, of the strong unlabeled ones, and of the weak unlabeled ones;
        None instead of the last where the batch has no unlabeled rows.
    """
    labeled = batch.labels >= 0
    num_labeled = int(labeled.sum())
    inputs, weak = batch.view("weak", labeled), None
    if num_labeled < labeled.shape[0]:
        with torch.no_grad():
            weak = net(batch.view("weak", ~labeled)).logits
        inputs = torch.cat([inputs, batch.view("strong", ~labeled)])
    logits = net(inputs).logits
    return logits[:num_labeled], logits[num_labeled:], weak
