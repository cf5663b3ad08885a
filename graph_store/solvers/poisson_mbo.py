"""Poisson learning refined by volume-constrained thresholding, for very few labels."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from ..view import Affinity
from .arrays import Array, as_labels, as_tensor, like
from .onehot import onehot
from .poisson import poisson
from .priors import as_priors, class_offsets
from .reductions import largest


def poisson_mbo(
    w: Affinity,
    labels: Array,
    class_priors: Array | None = None,
    *,
    mu: float = 1.0,
    inner_steps: int = 40,
    outer_steps: int = 20,
    tol: float = 1e-8,
    prior_tol: float = 1e-3,
    num_classes: int | None = None,
    max_iter: int = 10_000,
) -> Any:
    """Cut the graph into classes of given sizes, with the labels as sources of heat.

    Calder, Cook, Thorpe and Slepcev, "Poisson Learning", ICML 2020, section 2.3 and algorithm 2,
    after Merriman, Bence and Osher: gradient descent on the graph's Ginzburg-Landau energy with
    the Poisson fidelity. From u^(0) = the classes of `poisson`, every outer step runs the heat
    equation with sources,

        u^(t+1) = u^(t) - dt (L u^(t) - mu sum_j (y_j - ybar) delta_j),  dt = 1 / max degree,

    `inner_steps` times and then makes rows one-hot, such that class sizes follow the priors.

    Departures: the sizes are met by adding an offset to each class's column, not a factor
    (`class_prior_projection` says why). Iteration ends early where the classes do not change any
    more. The result is not the last one-hot column block but the heat with the offsets added, which
    has the same classes and says how near the boundary a node lies.

    Args:
        w: Symmetric weights.
        labels: Given labels of the own rows, -1 = unlabeled.
        class_priors: Share of the nodes in each class, C positive numbers that sum to 1; by default
            the shares among the labeled nodes.
        mu: Weight of the labels.
        inner_steps, outer_steps: 40 and 20 in the paper.
        tol: Relative residual of the Poisson equation at the start.
        prior_tol: How far a class's share of the nodes may be from its prior.
        num_classes: C; by default the largest label plus one. Shards must pass it.
        max_iter: Upper bound on the products with W in solving the Poisson equation.

    Returns:
        (n, C) float64 whose rows sum to 1; the class of a node is the largest entry. Entries may
        lie a little outside 0..1. Components without labels get the class that the sizes leave
        room for. Array or tensor as `labels` is.

    Raises:
        ValueError: Priors that are not positive or do not sum to 1, a class without prior and
            label, mu or steps that are not positive, or what `poisson` refuses.

    Cost:
        One product with W per inner step (800 by default), on top of `poisson`.
    """
    if not mu > 0 or inner_steps < 1 or outer_steps < 1 or not prior_tol >= 0:
        raise ValueError(
            "mu, inner_steps and outer_steps must be > 0 and prior_tol >= 0, got "
            f"{mu}, {inner_steps}, {outer_steps} and {prior_tol}"
        )
    device = w.degrees.device
    given = as_labels(labels).to(device)
    y = onehot(given, w, num_classes)
    counts = w.all_sum(y.sum(0))
    mean = counts / counts.sum()
    sizes = _sizes(mean if class_priors is None else class_priors, y.shape[1], device, w.num_nodes)
    degrees = w.degrees.to(torch.float64)[:, None]
    step = 1 / largest(degrees[:, 0], w.all_max).clamp(min=1e-300)
    sources = step * mu * torch.where((given >= 0)[:, None], y - mean, 0.0)
    stay = 1 - step * degrees

    def threshold(u: Float64[Tensor, "n C"]) -> Tensor:
        return torch.nn.functional.one_hot(u.argmax(1), y.shape[1]).to(torch.float64)

    classes = threshold(poisson(w, given, tol, num_classes=y.shape[1], max_iter=max_iter))
    for _ in range(outer_steps):
        heat = classes
        for _ in range(inner_steps):
            heat = stay * heat + step * w.matmul(heat) + sources
        rows = max(prior_tol * w.num_nodes, 0.5)
        heat = heat + class_offsets(heat, sizes, tol=rows, all_sum=w.all_sum)
        before, classes = classes, threshold(heat)
        if int(w.all_sum((before != classes).sum())) == 0:
            break
    return like(heat, labels)


def _sizes(
    class_priors: Array, num_classes: int, device: torch.device, num_nodes: int
) -> Float64[Tensor, " C"]:
    priors = as_priors(as_tensor(class_priors), num_classes, device)
    if not bool((priors > 0).all()):
        raise ValueError(
            f"class {int(priors.argmin())} has prior 0; poisson_mbo needs a label or a prior of "
            "every class"
        )
    return priors * num_nodes
