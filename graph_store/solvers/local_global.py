"""Local and global consistency: labels spread over the graph, and pseudo-labels made of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ..view import Affinity
from .arrays import Array, as_labels, as_tensor, like
from .graph_system import OnSolve, graph_system
from .onehot import onehot
from .reductions import Reduction, largest


def local_global(
    w: Affinity,
    labels: Array,
    *,
    num_classes: int | None = None,
    alpha: float = 0.99,
    balance_classes: bool = False,
    tol: float = 1e-6,
    max_iter: int = 1000,
    x0: Array | None = None,
    dtype: torch.dtype = torch.float64,
    on_solve: OnSolve | None = None,
) -> Any:
    """Spread given labels over the graph, smooth along strong edges.

    Solves (I - alpha S) F = Y with S = D^-1/2 W D^-1/2, the fixed point of
    F^(t+1) = alpha S F^(t) + (1 - alpha) Y up to the factor 1 - alpha: Zhou et al., "Learning with
    Local and Global Consistency", NIPS 2003, section 2. By conjugate gradients, all classes at
    once, as Iscen et al. (CVPR 2019) do; they stop after 20 iterations, here `tol` decides.

    Args:
        w: Symmetric weights; the rows of S of nodes without edges are zero.
        labels: Given labels of the own rows, -1 = unlabeled.
        num_classes: C; by default the largest label of all shards plus one. Shards must pass it.
        alpha: Share of the neighbours, in (0, 1).
        balance_classes: Divide each class's column of Y by its number of labeled nodes (LPDSSL).
        tol: Stop when every class's residual is below `tol` times the norm of its column of Y.
        max_iter: Upper bound on the number of products with S.
        x0: Where to start, (n, C): the scores of similar labels or weights. Rows of labeled nodes
            count for little; they are taken from their neighbours'.
        dtype: float32 halves time and memory; then `tol` should be 1e-5 or more.
        on_solve: Told how the solve went; it need not have converged.

    Returns:
        (n, C) scores of `dtype`, not negative up to solver error, rows not normalised; array or
        tensor as `labels` is. Zero rows lie in components without a labeled node.

    Raises:
        ValueError: alpha outside (0, 1), no labels, or labels that do not fit.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie strictly between 0 and 1, got {alpha}")
    y = onehot(as_labels(labels).to(w.degrees.device), w, num_classes)
    if balance_classes:
        y = y / w.all_sum(y.sum(0)).clamp(min=1)
    scale = math.sqrt(alpha) * inverse_sqrt(w.degrees)
    system = graph_system(w, diagonal=torch.ones_like(scale), scale=scale, dtype=dtype)
    start = None
    if x0 is not None:
        start = as_tensor(x0).to(y)
        # What the fixed point makes of a labeled node's row, from those of its neighbours.
        swept = y + scale[:, None] * w.matmul(scale[:, None] * start)
        start = torch.where(y.sum(1, keepdim=True) > 0, swept, start)
    result = system.solve(y, x0=start, tol=tol, max_iter=max_iter, on_solve=on_solve)
    return like(result.solution, labels)


def inverse_sqrt(degrees: Float[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """D^-1/2, with 0 for nodes without edges."""
    d = degrees.to(torch.float64)
    return torch.where(d > 0, d.clamp(min=1e-300).rsqrt(), 0.0)


@dataclass(frozen=True)
class SpreadLabels:
    """Pseudo-labels of the own rows, arrays or tensors as the scores were.

    Attributes:
        labels: Given label, or the class of the largest score (the lower class on ties).
        probs: Scores clipped at 0 and scaled to sum 1; uniform where nothing arrived, one-hot for
            labeled nodes.
        weight: Certainty in [0, 1]; 0 where nothing arrived, 1 for labeled nodes.
        class_weight: Per class, inverse to how many nodes have it; the largest is 1. 0 for classes
            without nodes.
    """

    labels: Any
    probs: Any
    weight: Any
    class_weight: Any


def pseudo_labels(
    f: Array,
    labels: Array,
    *,
    all_sum: Reduction = lambda x: x,
    all_max: Reduction = lambda x: x,
) -> SpreadLabels:
    """Turn scores into labels, certainties and class weights as LPDSSL does.

    omega_i = 1 - H(F_i) / log C, divided by its maximum over all nodes; zeta_j = 1 /
    |{i: y^_i = j}|, divided by its maximum: Iscen et al., CVPR 2019, eqs. 11 and 12, and their
    code for the two divisions.

    Departure: nodes where nothing arrived have no class and count for no zeta_j.

    Args:
        f: (n, C) scores of `local_global`.
        labels: Given labels of the own rows, -1 = unlabeled.
        all_sum, all_max: Reductions over shards; the identity in one process.

    Raises:
        ValueError: Shapes that do not fit, or a label that is no column of `f`.
    """
    scores = as_tensor(f).to(torch.float64).clamp(min=0)
    given = as_labels(labels).to(scores.device)
    if scores.ndim != 2 or scores.shape[0] != given.shape[0]:
        raise ValueError(
            f"scores must be {given.shape[0]} x C like the labels, got {tuple(scores.shape)}"
        )
    num_classes = scores.shape[1]
    if given.numel() and int(given.max()) >= num_classes:
        raise ValueError(f"label {int(given.max())} has no column in {num_classes} scores")
    probs, weight = _certainty(scores)
    labeled = given >= 0
    weight = _scale_to_one(weight, all_max)
    winner = torch.where(labeled, given, scores.argmax(1))
    reached = labeled | (scores.sum(1) > 0)
    class_weight = _class_weight(winner, reached, num_classes, all_sum)
    truth = torch.nn.functional.one_hot(winner, num_classes).to(torch.float64)
    return SpreadLabels(
        labels=like(winner, f),
        probs=like(torch.where(labeled[:, None], truth, probs), f),
        weight=like(torch.where(labeled, 1.0, weight), f),
        class_weight=like(class_weight, f),
    )


def _certainty(scores: Float64[Tensor, "n C"]) -> tuple[Tensor, Tensor]:
    """Rows scaled to sum 1 (uniform if zero), and 1 - entropy / log C."""
    num_classes = scores.shape[1]
    total = scores.sum(1, keepdim=True)
    probs = torch.where(total > 0, scores / total.clamp(min=1e-300), 1 / num_classes)
    entropy = -torch.special.xlogy(probs, probs).sum(1)
    # With one class there is nothing to be uncertain about.
    certainty = 1 - entropy / math.log(num_classes) if num_classes > 1 else torch.ones_like(entropy)
    return probs, torch.where(total[:, 0] > 0, certainty.clamp(0, 1), 0.0)


def _scale_to_one(weight: Float64[Tensor, " n"], all_max: Reduction) -> Float64[Tensor, " n"]:
    top = largest(weight, all_max)
    return torch.where(top > 0, weight / top.clamp(min=1e-300), weight)


def _class_weight(
    winner: Int64[Tensor, " n"],
    reached: Bool[Tensor, " n"],
    num_classes: int,
    all_sum: Reduction,
) -> Float64[Tensor, " C"]:
    counts = all_sum(torch.bincount(winner[reached], minlength=num_classes)).to(torch.float64)
    weight = torch.where(counts > 0, 1 / counts.clamp(min=1), 0.0)
    return weight / weight.amax().clamp(min=1e-300)
