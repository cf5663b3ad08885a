"""Where a random walk that may stop at every node comes to rest: a baseline."""

from __future__ import annotations

from typing import Any

import torch

from ..view import Affinity
from .arrays import Array, as_labels, like
from .graph_system import graph_system
from .onehot import onehot


def random_walk(
    w: Affinity,
    labels: Array,
    alpha: float = 0.95,
    *,
    tol: float = 1e-10,
    num_classes: int | None = None,
    max_iter: int = 10_000,
) -> Any:
    """Share of random walks from each node that end on a labeled node of each class.

    Solves (I - alpha P) U = (1 - alpha) Y with P = D^-1 W: a walk goes on with probability alpha at
    every step and rests where it stops. This is variant (I - alpha P)^-1 Y of Zhou et al.,
    "Learning with Local and Global Consistency", NIPS 2003, the lazy walk of Zhou and
    Schoelkopf, "Learning from labeled and unlabeled data using random walks", DAGM 2004, and the
    partially absorbing walk of Wu et al., NIPS 2012, with absorption in proportion to the degree.
    Solved in the symmetric form (D - alpha W) U = (1 - alpha) D Y.

    Args:
        w: Symmetric weights.
        labels: Given labels of the own rows, -1 = unlabeled.
        alpha: Probability to go on, in (0, 1).
        tol: Relative residual of each class.
        num_classes: C; by default the largest label plus one. Shards must pass it.
        max_iter: Upper bound on the products with W.

    Returns:
        (n, C) float64, not negative up to solver error, row sums at most 1; zero rows lie in
        components without a labeled node. A labeled node without edges has 1 - alpha in its class.
        Array or tensor as `labels` is.

    Raises:
        ValueError: alpha outside (0, 1), no labels, labels that do not fit, or no convergence
            within `max_iter`.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie strictly between 0 and 1, got {alpha}")
    y = (1 - alpha) * onehot(as_labels(labels).to(w.degrees.device), w, num_classes)
    degrees = w.degrees.to(torch.float64)
    # A node without edges has a row of zeros in P; any factor but zero gives its equation.
    degrees = torch.where(degrees > 0, degrees, 1.0)
    system = graph_system(w, diagonal=degrees, scale=torch.full_like(degrees, alpha**0.5))
    result = system.solve(degrees[:, None] * y, tol=tol, max_iter=max_iter)
    return like(result.require_converged().solution, labels)
