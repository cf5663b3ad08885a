"""Classes of given sizes: scores shifted per class until as many nodes win as the priors say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from .arrays import Array, as_labels, as_tensor, like
from .reductions import Reduction

# Temperatures, in units of the scores' spread: from classes that mix to classes that do not.
TEMPERATURES = tuple(0.25**step for step in range(12))
MAX_NEWTON_STEPS = 30


@dataclass(frozen=True)
class ProjectedLabels:
    """Arrays or tensors as the scores were.

    Attributes:
        labels: Given label, or the class of the largest shifted score (the lower class on ties).
        scores: The scores with the offsets added; only differences within a row have a meaning.
        offsets: What is added to each class's scores; -inf for a class that gets no
            further nodes, of mean zero otherwise.
        shares: Of the nodes in each class.
        error: Largest difference between a share and its prior.
    """

    labels: Any
    scores: Any
    offsets: Any
    shares: Any
    error: float


def class_prior_projection(
    scores: Array,
    labels: Array,
    class_priors: Array,
    *,
    tol: float = 1e-3,
    all_sum: Reduction = lambda x: x,
) -> ProjectedLabels:
    """Choose classes by argmax_c (s_ic + b_c), b such that the class sizes follow the priors.

    Among all labelings with these class sizes this one has the largest total score; the offsets
    are the prices of the classes (Jacobs, Merkurjev and Esedoglu, "Auction dynamics", J. Comput.
    Phys. 2018). They minimise the convex dual sum_i max_c (s_ic + b_c) - sum_c n_c b_c, n_c the
    wanted sizes. Labeled nodes keep their class and count in it.

    Departures: the published volume label projection (Calder et al., ICML 2020, section 2.3)
    multiplies scores instead of shifting them, which depends on where their zero is; for factors,
    pass logarithms. It steps along the difference of sizes, where an auction raises prices one by
    one; here the maximum is smoothed (log-sum-exp) and the dual minimised by Newton's method at
    falling temperatures until the sizes fit.

    Offsets cannot tell rows apart that are equal: such nodes get one class, and sizes are then
    missed by as many nodes as are tied. The sizes that came nearest are kept. A class whose labeled
    nodes alone exceed its prior gets no further ones; the others share what is left.

    Args:
        scores: n x C of the own rows, larger = more likely.
        labels: Given labels of the own rows, -1 = unlabeled.
        class_priors: C shares that sum to 1.
        tol: Stop when no class's share is further than this from its prior.
        all_sum: Sum over shards; the identity in one process.

    Raises:
        ValueError: Shapes that do not fit, scores that are not finite, priors that are negative or
            do not sum to 1, labels beyond C, or tol < 0.

    Cost:
        Per Newton step n C^2 operations, an n x C buffer and two or more `all_sum` of C^2 numbers.
    """
    s, priors = _check(scores, class_priors, tol)
    given = as_labels(labels).to(s.device)
    if given.shape[0] != s.shape[0]:
        raise ValueError(f"got {given.shape[0]} labels for {s.shape[0]} rows of scores")
    num_classes = s.shape[1]
    if given.numel() and int(given.max()) >= num_classes:
        raise ValueError(f"label {int(given.max())} has no column in {num_classes} scores")
    fixed = all_sum(torch.bincount(given[given >= 0], minlength=num_classes)).to(s.dtype)
    total = all_sum(torch.full((), s.shape[0], device=s.device))
    left = (priors * total - fixed).clamp(min=0)
    left = left * ((total - fixed.sum()) / left.sum().clamp(min=1e-300))
    # Sizes are whole numbers: half a row is as near as they always can come.
    offsets = class_offsets(s[given < 0], left, tol=max(tol * float(total), 0.5), all_sum=all_sum)
    shifted = s + offsets
    winner = torch.where(given >= 0, given, shifted.argmax(1))
    shares = all_sum(torch.bincount(winner, minlength=num_classes)).to(s.dtype) / total.clamp(min=1)
    return ProjectedLabels(
        like(winner, scores),
        like(shifted, scores),
        like(offsets, scores),
        like(shares, scores),
        float((shares - priors).abs().max()),
    )


def as_priors(class_priors: Array, num_classes: int, device: torch.device) -> Float64[Tensor, " C"]:
    """Priors in float64.

    Raises:
        ValueError: Not C finite numbers >= 0 that sum to 1 (to 1e-6).
    """
    priors = as_tensor(class_priors).to(device, torch.float64)
    if priors.shape != (num_classes,):
        raise ValueError(
            f"class_priors must be {num_classes} numbers, one per class, got shape "
            f"{tuple(priors.shape)}"
        )
    # Written so that NaN fails too.
    if not bool((priors >= 0).all()) or not abs(float(priors.sum()) - 1) <= 1e-6:
        raise ValueError(
            f"class_priors must be shares >= 0 that sum to 1, got {priors.tolist()} with sum "
            f"{float(priors.sum()):.6g}"
        )
    return priors / priors.sum()


def class_offsets(
    scores: Float64[Tensor, "n C"],
    sizes: Float64[Tensor, " C"],
    *,
    tol: float,
    all_sum: Reduction,
) -> Float64[Tensor, " C"]:
    """Offsets with which each class wins `sizes` rows of all shards, as nearly as can be.

    Classes of size zero get -inf; the mean of the others is zero.

    Args:
        tol: In rows.
    """
    wanted = sizes > 0
    offsets = torch.full_like(sizes, -torch.inf)
    offsets[wanted] = 0
    if int(wanted.sum()) > 1:
        offsets[wanted] = _fit(scores[:, wanted], sizes[wanted], tol, all_sum)
    return offsets


def _fit(
    scores: Float64[Tensor, "n C"],
    sizes: Float64[Tensor, " C"],
    tol: float,
    all_sum: Reduction,
) -> Float64[Tensor, " C"]:
    num_classes = sizes.shape[0]

    def misses(b: Tensor) -> float:
        counts = all_sum(torch.bincount((scores + b).argmax(1), minlength=num_classes))
        return float((counts - sizes).abs().max())

    # The spread of scores within rows: offsets of this size change classes.
    inner = scores - scores.mean(1, keepdim=True)
    spread = float((all_sum(inner.square().sum()) / (sizes.sum() * num_classes)).sqrt())
    b = best = torch.zeros_like(sizes)
    fewest = misses(b)
    for temperature in TEMPERATURES:
        if fewest <= tol or spread == 0:
            break
        b = _newton(scores, sizes, b, temperature * spread, tol, all_sum)
        missed = misses(b)
        if missed < fewest:
            best, fewest = b, missed
    return best


def _newton(
    scores: Float64[Tensor, "n C"],
    sizes: Float64[Tensor, " C"],
    b: Float64[Tensor, " C"],
    temperature: float,
    tol: float,
    all_sum: Reduction,
) -> Float64[Tensor, " C"]:
    """Minimise sum_i T log sum_c exp((s_ic + b_c) / T) - sum_c n_c b_c, with backtracking."""
    value, gradient, curvature = _dual(scores, sizes, b, temperature, all_sum)
    for _ in range(MAX_NEWTON_STEPS):
        if float(gradient.abs().max()) <= tol / 4:
            break
        # Offsets that all rise together change nothing, and no row may lie near a boundary.
        ridge = 1e-6 * curvature.diagonal().mean() + 1e-12 * sizes.sum() / temperature
        step = -torch.linalg.solve(curvature + ridge * torch.eye(len(b)).to(curvature), gradient)
        step = step - step.mean()
        slope, length = float(step @ gradient), 1.0
        while length > 1e-6:
            moved = b + length * step
            after = _dual(scores, sizes, moved, temperature, all_sum)
            if float(after[0]) <= float(value) + 1e-4 * length * slope:
                break
            length /= 2
        else:
            break
        b, (value, gradient, curvature) = moved, after
    return b


def _dual(
    scores: Float64[Tensor, "n C"],
    sizes: Float64[Tensor, " C"],
    b: Float64[Tensor, " C"],
    temperature: float,
    all_sum: Reduction,
) -> tuple[Tensor, Tensor, Tensor]:
    """Value, gradient and Hessian of the smoothed dual."""
    z = (scores + b) / temperature
    probs = z.softmax(1)
    parts = torch.cat([temperature * z.logsumexp(1).sum().reshape(1), probs.sum(0)])
    sums = all_sum(torch.cat([parts, (probs.T @ probs).reshape(-1)]))
    counts, products = sums[1 : len(b) + 1], sums[len(b) + 1 :].reshape(len(b), len(b))
    return sums[0] - sizes @ b, counts - sizes, (counts.diag() - products) / temperature


def _check(
    scores: Array, class_priors: Array, tol: float
) -> tuple[Float64[Tensor, "n C"], Float64[Tensor, " C"]]:
    s = as_tensor(scores)
    if s.ndim != 2 or not bool(s.isfinite().all()):
        raise ValueError(f"scores must be finite numbers n x C, got shape {tuple(s.shape)}")
    if not tol >= 0:
        raise ValueError(f"tol must be >= 0, got {tol}")
    return s.to(torch.float64), as_priors(class_priors, s.shape[1], s.device)
