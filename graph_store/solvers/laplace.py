"""Laplace learning: labels extended to the whole graph as harmonic functions."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ..view import Affinity
from .arrays import Array, as_labels, as_tensor, like
from .components import components, sum_by_component
from .graph_system import OnSolve, graph_system
from .onehot import onehot


def laplace(
    w: Affinity,
    labels: Array,
    tau: float = 0.0,
    tol: float = 1e-10,
    on_unreached: Literal["raise", "uniform"] = "raise",
    *,
    fidelity: float | None = None,
    num_classes: int | None = None,
    x0: Array | None = None,
    max_iter: int = 10_000,
    dtype: torch.dtype = torch.float64,
    on_solve: OnSolve | None = None,
) -> Any:
    """Extend given labels to all nodes.

    Solves (L_uu + tau I) U = -L_ub Y_b with L = D - W, b the labeled and u the unlabeled nodes:
    Zhu, Ghahramani and Lafferty, ICML 2003, eq. 5, with the Tikhonov term of GLL. With `fidelity`
    mu, labels are soft: (L + mu I_b + tau I) U = mu Y on all nodes. Conjugate gradients with a
    two-level preconditioner, all classes at once.

    Args:
        w: Symmetric weights.
        labels: Given labels of the own rows, -1 = unlabeled.
        tau: At least 0. With 0 rows sum to 1; above, they decay away from the labels.
        tol: Relative residual of each class.
        on_unreached: What to do with nodes that no path connects to a labeled node, which tau = 0
            leaves undetermined: an error, or the uniform distribution. With tau > 0 they are zero.
        fidelity: Strength of soft labels, above 0; None = labels hold exactly.
        num_classes: C; by default the largest label plus one. Shards must pass it.
        x0: Where to start, (n, C): the result for similar labels or weights.
        max_iter: Upper bound on the number of products with W.
        dtype: float32 halves time and memory; then `tol` should be 1e-5 or more.
        on_solve: Told how the solve went.

    Returns:
        (n, C) of `dtype`; labeled rows are one-hot unless they are soft; array or tensor as
        `labels` is.

    Raises:
        ValueError: tau < 0, fidelity <= 0, no labels, labels that do not fit, unreached nodes, or
            no convergence within `max_iter`.
    """
    if not tau >= 0:
        raise ValueError(f"tau must be >= 0, got {tau}")
    if fidelity is not None and not fidelity > 0:
        raise ValueError(f"fidelity must be > 0, got {fidelity}; pass None for hard labels")
    if on_unreached not in ("raise", "uniform"):
        raise ValueError(f'on_unreached must be "raise" or "uniform", got {on_unreached!r}')
    given = as_labels(labels).to(w.degrees.device)
    y = onehot(given, w, num_classes)
    labeled = given >= 0
    component = components(w)
    reached = _reached(w, component, labeled)
    if tau == 0 and on_unreached == "raise":
        _refuse_unreached(w, component, reached)
    # Nodes whose rows are not solved for are decoupled: their solution is 0.
    free = reached if fidelity is not None else reached & ~labeled
    scale = free.to(torch.float64)
    diagonal = w.degrees.to(torch.float64) + tau
    if fidelity is not None:
        diagonal, rhs = diagonal + fidelity * labeled, fidelity * y
    else:
        rhs = torch.where(free[:, None], w.matmul(y), 0.0)
    # An isolated labeled node has degree 0, and is decoupled.
    system = graph_system(w, diagonal=_positive(diagonal), scale=scale, dtype=dtype)
    start = None if x0 is None else as_tensor(x0).to(y) * scale[:, None]
    result = system.solve(rhs, x0=start, tol=tol, max_iter=max_iter, on_solve=on_solve)
    u = result.require_converged().solution
    if fidelity is None:
        u = u + y.to(dtype)
    if tau == 0:
        u = torch.where(reached[:, None], u, 1 / y.shape[1])
    return like(u, labels)


def reachable(w: Affinity, start: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Nodes of the components that hold a node of `start`."""
    return _reached(w, components(w), start)


def _reached(
    w: Affinity, component: Int64[Tensor, " n"], start: Bool[Tensor, " n"]
) -> Bool[Tensor, " n"]:
    counts = sum_by_component(w, component, start.to(torch.float64)[:, None])
    return counts[:, 0] > 0


def _positive(diagonal: Tensor) -> Tensor:
    return torch.where(diagonal > 0, diagonal, 1.0)


def _refuse_unreached(
    w: Affinity, component: Int64[Tensor, " n"], reached: Bool[Tensor, " n"]
) -> None:
    roots = ~reached & (component == w.node_ids)
    nodes, parts = w.all_sum(torch.stack([(~reached).sum(), roots.sum()])).tolist()
    if not nodes:
        return
    rows = (~reached).nonzero()[:10, 0].tolist()
    more = " ..." if nodes > len(rows) else ""
    raise ValueError(
        f"{nodes} nodes are connected to no labeled node (components: {parts}; rows "
        f"{', '.join(map(str, rows))}{more}); label one node in each component, raise k, use "
        'tau > 0, or pass on_unreached="uniform"'
    )
