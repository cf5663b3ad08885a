"""Poisson learning: labels as sources and sinks, made for very few labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..view import Affinity
from .arrays import Array, as_labels, like
from .conjugate_gradient import conjugate_gradient
from .local_global import inverse_sqrt
from .onehot import onehot


def poisson(
    w: Affinity,
    labels: Array,
    tol: float = 1e-12,
    *,
    num_classes: int | None = None,
    max_iter: int = 10_000,
) -> Any:
    """Solve L u = sum_j (y_j - ybar) delta_j over the labeled nodes j, ybar their mean.

    Calder, Cook, Thorpe and Slepcev, "Poisson Learning", ICML 2020, eq. 2.3 (L = D - W), with
    the solution of degree-weighted mean zero. In v = D^1/2 u the system has the matrix
    I - S, whose null space (D^1/2 1 on each component) conjugate gradients from zero never enter.

    A component in which the sources do not sum to zero has no solution. They are replaced by their
    projection on the range of I - S, which makes the answer that of least squares: the mean of
    each component is then zero, components without labels are zero, and classes are compared
    within components. The projection is the solution y
    of (I - S) y = (I - S) b that lies in the range.

    Args:
        w: Symmetric weights.
        labels: Given labels of the own rows, -1 = unlabeled.
        tol: Relative residual of each class.
        num_classes: C; by default the largest label plus one. Shards must pass it.
        max_iter: Upper bound on the products with W, for each of the two solves.

    Returns:
        (n, C) float64, degree-weighted column means 0; the class of a node is the largest entry of
        its row. Array or tensor as `labels` is.

    Raises:
        ValueError: No labels, labels that do not fit, or no convergence within `max_iter`.
    """
    given = as_labels(labels).to(w.degrees.device)
    y = onehot(given, w, num_classes)
    total = w.all_sum(torch.cat([y.sum(0), y.sum().reshape(1)]))
    sources = torch.where((given >= 0)[:, None], y - total[:-1] / total[-1], 0.0)
    scale = inverse_sqrt(w.degrees)[:, None]

    def system(v: Tensor) -> Tensor:
        return torch.where(scale > 0, v - scale * w.matmul(scale * v), 0.0)

    def solve(b: Tensor) -> Tensor:
        result = conjugate_gradient(system, b, all_sum=w.all_sum, tol=tol, max_iter=max_iter)
        return result.require_converged().solution

    b = scale * sources
    image = system(b)
    # A class whose sources lie in the null space leaves rounding noise, which has no solution.
    norms = w.all_sum(torch.stack([image.square().sum(0), b.square().sum(0)])).sqrt()
    image[:, norms[0] <= 1e-14 * norms[1]] = 0
    return like(scale * solve(solve(image)), labels)
