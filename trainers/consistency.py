"""Agreement of a network with its average, a term that several methods can add."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from .losses import prediction_mse, ramp_up
from .method import Batch


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
