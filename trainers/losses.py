"""What a prediction costs: pure functions of logits, targets and weights.

Sums are divided by the number of rows, not by the sum of weights: a row of weight 0 still counts
as a row, as in FixMatch and LPDSSL. Logits of half precision are widened to float32 first.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor


def soft_cross_entropy(
    logits: Float[Tensor, "b C"],
    targets: Float[Tensor, "b C"],
    weight: Float[Tensor, " b"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over rows of `-weight * sum_j targets_j log softmax(logits)_j`; 0 for no rows."""
    rows = -(targets * log_probs(logits)).sum(dim=1)
    if weight is not None:
        rows = rows * weight
    return rows.sum() / max(1, rows.shape[0])


def entropy_and_balance(
    logits: Float[Tensor, "b C"],
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Both terms of DAG's regulariser R (Li et al., CVPR 2020, eq. 2); R is their sum.

    R = mean_i H(h(x_i)) - (1/C) sum_j log hbar_j, with hbar the mean softmax of the batch: the
    first term asks for confident predictions, the second for equal class frequencies. The second
    is at least log C, which it takes where hbar is uniform.

    Raises:
        ValueError: There are no rows, so that there is no mean prediction.
    """
    if logits.shape[0] == 0:
        raise ValueError("entropy_and_balance got 0 rows; the regulariser needs at least one")
    log_p = log_probs(logits)
    entropy = -(log_p.exp() * log_p).sum(dim=1).mean()
    log_mean = torch.logsumexp(log_p, dim=0) - math.log(logits.shape[0])
    return entropy, -log_mean.mean()


def consistency(
    strong_logits: Float[Tensor, "b C"],
    weak_logits: Float[Tensor, "b C"],
    *,
    threshold: float,
) -> tuple[Float[Tensor, ""], Bool[Tensor, " b"]]:
    """FixMatch's loss of the unlabeled rows (Sohn et al., NeurIPS 2020, eq. 4).

    (1/b) sum_i 1[max q_i >= threshold] H(argmax q_i, strong_i) with q = softmax of the weak
    logits, through which no gradient flows.

    Returns:
        The loss, and which rows passed the threshold.
    """
    confidence, labels = log_probs(weak_logits.detach()).exp().max(dim=1)
    passed = confidence >= threshold
    targets = torch.nn.functional.one_hot(labels, strong_logits.shape[1]).to(confidence.dtype)
    return soft_cross_entropy(strong_logits, targets, passed.to(confidence.dtype)), passed


def prediction_mse(
    student_logits: Float[Tensor, "b C"], teacher_logits: Float[Tensor, "b C"]
) -> Float[Tensor, ""]:
    """Mean Teacher's consistency cost (Tarvainen and Valpola, NeurIPS 2017, eq. 1).

    (1/b) sum_i |softmax(student_i) - softmax(teacher_i)|^2. No gradient flows into the teacher.
    The published code divides by C as well and multiplies by 100 for CIFAR-10: its weight of 100
    is one of 10 here, with ten classes.
    """
    difference = log_probs(student_logits).exp() - log_probs(teacher_logits.detach()).exp()
    return difference.square().sum() / max(1, difference.shape[0])


def ramp_up(epoch: float, length: float) -> float:
    """exp(-5 (1 - min(epoch / length, 1))^2), the rise of a consistency weight; 1 for length 0."""
    if length == 0:
        return 1.0
    return math.exp(-5.0 * (1.0 - min(epoch / length, 1.0)) ** 2)


def mixup_pairs(
    b: int, alpha: float, generator: torch.Generator
) -> tuple[Int64[Tensor, " b"], Float[Tensor, " b"]]:
    """Partners and shares of mixup (Zhang et al., ICLR 2018) within a micro-batch of `b` rows.

    Departure: the paper draws one share per batch, we draw one per row (as MixMatch does), since
    a micro-batch is small. Beta numbers come from numpy, seeded by `generator`: torch has none
    that take a generator.

    Args:
        alpha: Both parameters of the Beta distribution; small = mostly one of the two, and 0 =
            no mixup: each row is its own partner with share 1, and nothing is drawn.

    Returns:
        Row i is to become `share_i * row_i + (1 - share_i) * row_(partner_i)`.
    """
    if alpha == 0:
        return torch.arange(b), torch.ones(b)
    partner = torch.randperm(b, generator=generator)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    share = np.random.default_rng(seed).beta(alpha, alpha, size=b)
    return partner, torch.from_numpy(share.astype(np.float32))


def mix(
    x: Shaped[Tensor, "b ..."], partner: Int64[Tensor, " b"], share: Float[Tensor, " b"]
) -> Shaped[Tensor, "b ..."]:
    """Rows `share * x + (1 - share) * x[partner]`."""
    weight = share.to(x.dtype).reshape(-1, *([1] * (x.ndim - 1)))
    return torch.lerp(x[partner], x, weight)


def log_probs(logits: Float[Tensor, "b C"]) -> Float[Tensor, "b C"]:
    """Log-softmax in float32 or wider."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=1)
