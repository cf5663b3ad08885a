"""Poisson learning: labels as sources and sinks, made for very few labels."""

from __future__ import annotations

from typing import Any

import torch

from ..view import Affinity
from .arrays import Array, as_labels, as_tensor, like
from .components import components, without_means
from .graph_system import OnSolve, graph_system
from .local_global import inverse_sqrt
from .onehot import onehot


def poisson(
    w: Affinity,
    labels: Array,
    tol: float = 1e-12,
    *,
    num_classes: int | None = None,
    x0: Array | None = None,
    max_iter: int = 10_000,
    dtype: torch.dtype = torch.float64,
    on_solve: OnSolve | None = None,
) -> Any:
    """Solve L u = sum_j (y_j - ybar) delta_j over the labeled nodes j, ybar their mean.

    Calder, Cook, Thorpe and Slepcev, "Poisson Learning", ICML 2020, eq. 2.3 (L = D - W), with
    the solution of degree-weighted mean zero. In v = D^1/2 u the system has the matrix
    I - S, whose null space (D^1/2 1 on each component) conjugate gradients from zero never enter.

    A component in which the sources do not sum to zero has no solution. They are replaced by their
    projection on the range of I - S, which makes the answer that of least squares: the mean of
    each component is then zero, components without labels are zero, and classes are compared
    within components.

    Args:
        w: Symmetric weights.
        labels: Given labels of the own rows, -1 = unlabeled.
        tol: Relative residual of each class.
        num_classes: C; by default the largest label plus one. Shards must pass it.
        x0: Where to start, (n, C): the result for similar labels or weights.
        max_iter: Upper bound on the number of products with W.
        dtype: float32 halves time and memory; then `tol` should be 1e-5 or more.
        on_solve: Told how the solve went.

    Returns:
        (n, C) of `dtype`, degree-weighted column means 0; the class of a node is the largest entry
        of its row. Array or tensor as `labels` is.

    Raises:
        ValueError: No labels, labels that do not fit, or no convergence within `max_iter`.
    """
    given = as_labels(labels).to(w.degrees.device)
    y = onehot(given, w, num_classes)
    total = w.all_sum(torch.cat([y.sum(0), y.sum().reshape(1)]))
    sources = torch.where((given >= 0)[:, None], y - total[:-1] / total[-1], 0.0)
    sqrt_degrees = w.degrees.to(torch.float64).sqrt()[:, None]
    scale = inverse_sqrt(w.degrees)
    component = components(w)
    b = scale[:, None] * sources
    projected = sqrt_degrees * without_means(w, component, scale[:, None] * b)
    # A class whose sources lie in the null space leaves rounding noise, which has no solution.
    norms = w.all_sum(torch.stack([projected.square().sum(0), b.square().sum(0)])).sqrt()
    projected[:, norms[0] <= 1e-14 * norms[1]] = 0
    system = graph_system(w, diagonal=torch.ones_like(scale), scale=scale, dtype=dtype)
    start = None if x0 is None else as_tensor(x0).to(y) * sqrt_degrees
    result = system.solve(projected, x0=start, tol=tol, max_iter=max_iter, on_solve=on_solve)
    u = scale[:, None] * result.require_converged().solution.to(torch.float64)
    return like(without_means(w, component, u).to(dtype), labels)
