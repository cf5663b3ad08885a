"""What the graph learning layer refuses, and the labels that it starts from."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

# Squares of larger numbers are not finite.
_MAX_FEATURE = 1e150


def check_arguments(
    k: int,
    tau: float | int | Tensor,
    bandwidth: str | float | int,
    p: float | int,
    on_unreached: str,
    tol: float | None,
) -> None:
    """Refuse arguments of the layer that are out of their range with a ValueError."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}; 24 is the paper's")
    if isinstance(tau, Tensor) and tau.numel() != 1:
        raise ValueError(f"tau must be one number, got a tensor of shape {tuple(tau.shape)}")
    strength = float(tau.detach() if isinstance(tau, Tensor) else tau)
    if not 0 <= strength < math.inf:
        raise ValueError(f"tau must be >= 0 and finite, got {strength}; 0 is the default")
    if isinstance(bandwidth, str) and bandwidth != "self_tuning":
        raise ValueError(f'bandwidth must be "self_tuning" or a number, got {bandwidth!r}')
    if not isinstance(bandwidth, str) and not 0 < bandwidth < math.inf:
        raise ValueError(f"a constant bandwidth must be > 0 and finite, got {bandwidth}")
    if not 2 <= p < math.inf:
        raise ValueError(f"p must be at least 2 and finite, got {p}; 2 is Laplace learning")
    if on_unreached not in ("raise", "uniform"):
        raise ValueError(f'on_unreached must be "raise" or "uniform", got {on_unreached!r}')
    if tol is not None and not 0 < tol < 1:
        raise ValueError(f"tol must lie between 0 and 1, got {tol}; leave it out for the default")


def check_batch(features: Tensor, labels: Tensor, k: int) -> None:
    """Refuse a batch with a ValueError that says what is wrong with it."""
    if features.ndim != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features must be (n, d) and labels (n,), got shapes {tuple(features.shape)} and "
            f"{tuple(labels.shape)}; pass one label for each row, -1 where it is to be predicted"
        )
    if labels.device != features.device:
        raise ValueError(
            f"features are on {features.device} and labels on {labels.device}; move the labels"
        )
    num_rows = features.shape[0]
    if k >= num_rows:
        raise ValueError(
            f"k must be less than the number of rows of the batch, got k = {k} with {num_rows} "
            "rows; lower k or enlarge the batch"
        )
    wrong = (~(features.detach().abs() <= _MAX_FEATURE)).any(1).nonzero()[:, 0]
    if len(wrong):
        raise ValueError(
            f"features of rows {wrong[:10].tolist()} contain NaN, infinity or numbers above "
            f"{_MAX_FEATURE:g}; look at the network's output or lower the learning rate"
        )


def base_rows(
    labels: Int64[Tensor, " n"], num_classes: int | None, base_probs: Float[Tensor, "b C"] | None
) -> Float[Tensor, "b C"]:
    """What is known of the base rows, in row order.

    Raises:
        ValueError: There is none, or labels, classes and distributions do not fit together.
    """
    given = labels[labels >= 0]
    if not len(given):
        raise ValueError(
            "the batch has no base row (all labels are -1); give the layer at least one row with a "
            "label"
        )
    if base_probs is not None and base_probs.shape[0] != len(given):
        raise ValueError(
            f"base_probs has {base_probs.shape[0]} rows, but {len(given)} rows of the batch have a "
            "label; pass one row for each of these, in row order"
        )
    width = None if base_probs is None else base_probs.shape[1]
    if num_classes is not None and width is not None and num_classes != width:
        raise ValueError(
            f"base_probs has {width} columns, but num_classes is {num_classes}; pass one of them"
        )
    classes, largest = num_classes or width, int(given.max())
    if classes is not None and largest >= classes:
        raise ValueError(
            f"labels must be below the number of classes, {classes}, got {largest}; correct the "
            "labels or raise num_classes"
        )
    if base_probs is None:
        return nn.functional.one_hot(given, classes or largest + 1).to(torch.float64)
    if not bool(base_probs.isfinite().all()):
        raise ValueError("base_probs contain NaN or infinity; pass finite class distributions")
    return base_probs
