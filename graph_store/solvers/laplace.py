"""Laplace learning: labels extended to the whole graph as harmonic functions."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ..view import Affinity
from .arrays import Array, as_labels, like
from .conjugate_gradient import conjugate_gradient
from .onehot import onehot


def laplace(
    w: Affinity,
    labels: Array,
    tau: float = 0.0,
    tol: float = 1e-10,
    on_unreached: Literal["raise", "uniform"] = "raise",
    *,
    num_classes: int | None = None,
    max_iter: int = 10_000,
) -> Any:
    """Extend given labels to all nodes.

    Solves (L_uu + tau I) U = -L_ub Y_b with L = D - W, b the labeled and u the unlabeled nodes:
    Zhu, Ghahramani and Lafferty, ICML 2003, eq. 5, with the Tikhonov term of GLL. Conjugate
    gradients with Jacobi preconditioning, all classes at once.

    Args:
        w: Symmetric weights.
        labels: Given labels of the own rows, -1 = unlabeled.
        tau: At least 0. With 0 rows sum to 1; above, they decay away from the labels.
        tol: Relative residual of each class.
        on_unreached: What to do with nodes that no path connects to a labeled node, which tau = 0
            leaves undetermined: an error, or the uniform distribution. With tau > 0 they are zero.
        num_classes: C; by default the largest label plus one. Shards must pass it.
        max_iter: Upper bound on the number of products with W.

    Returns:
        (n, C) float64; labeled rows are one-hot; array or tensor as `labels` is.

    Raises:
        ValueError: tau < 0, no labels, labels that do not fit, unreached nodes, or no
            convergence within `max_iter`.
    """
    if not tau >= 0:
        raise ValueError(f"tau must be >= 0, got {tau}")
    if on_unreached not in ("raise", "uniform"):
        raise ValueError(f'on_unreached must be "raise" or "uniform", got {on_unreached!r}')
    given = as_labels(labels).to(w.degrees.device)
    y = onehot(given, w, num_classes)
    labeled, reached = given >= 0, reachable(w, given >= 0)
    if tau == 0 and on_unreached == "raise":
        _refuse_unreached(w, reached)
    free = (reached & ~labeled)[:, None]
    diagonal = w.degrees.to(torch.float64) + tau

    def system(u: Tensor) -> Tensor:
        return torch.where(free, diagonal[:, None] * u - w.matmul(u), 0.0)

    result = conjugate_gradient(
        system,
        torch.where(free, w.matmul(y), 0.0),
        all_sum=w.all_sum,
        inverse_diagonal=torch.where(free[:, 0], 1 / diagonal.clamp(min=1e-300), 0.0),
        tol=tol,
        max_iter=max_iter,
    )
    u = y + result.require_converged().solution
    if tau == 0:
        u = torch.where(reached[:, None], u, 1 / y.shape[1])
    return like(u, labels)


def reachable(w: Affinity, start: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Nodes that a path of positive weights connects to a node of `start`; breadth first."""
    found, size = start, int(w.all_sum(start.sum()))
    while True:
        touched: Float64[Tensor, "n 1"] = w.matmul(found.to(torch.float64)[:, None])
        found = found | (touched[:, 0] > 0)
        grown = int(w.all_sum(found.sum()))
        if grown == size:
            return found
        size = grown


def _refuse_unreached(w: Affinity, reached: Bool[Tensor, " n"]) -> None:
    count = int(w.all_sum((~reached).sum()))
    if count:
        rows = (~reached).nonzero()[:10, 0].tolist()
        raise ValueError(
            f"{count} nodes are connected to no labeled node (rows {rows} ...); label one node in "
            'each component, raise k, use tau > 0, or pass on_unreached="uniform"'
        )
