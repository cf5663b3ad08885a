"""Conjugate gradients for several right-hand sides at once, on any linear operator.

The operator may be spread over shards: it maps own rows to own rows, and scalar products are summed
by `all_sum`, the same numbers on every shard, so that all shards take the same decisions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

Operator = Callable[[Float64[Tensor, "n c"]], Float64[Tensor, "n c"]]


@dataclass(frozen=True)
class CgResult:
    """Attributes:
    solution: One column per right-hand side.
    residuals: |b - A x| / |b| of each column, as carried along by the recursion; 0 where b = 0.
    iterations: Products with the operator, apart from the one that a warm start needs.
    converged: Whether the residual of a column is within the tolerance.
    """

    solution: Float64[Tensor, "n C"]
    residuals: Float64[Tensor, " C"]
    iterations: int
    converged: Bool[Tensor, " C"]

    def require_converged(self) -> CgResult:
        """This result, or a ValueError if a column is not solved to its tolerance."""
        if not bool(self.converged.all()):
            raise ValueError(
                f"no convergence in {self.iterations} iterations, largest relative residual "
                f"{float(self.residuals.max()):.2g}; raise max_iter or tol"
            )
        return self


def conjugate_gradient(
    apply: Operator,
    rhs: Float[Tensor, "n C"],
    *,
    all_sum: Callable[[Tensor], Tensor],
    x0: Float[Tensor, "n C"] | None = None,
    inverse_diagonal: Float[Tensor, " n"] | None = None,
    tol: float = 1e-6,
    max_iter: int = 1000,
) -> CgResult:
    """Solve A X = B for a symmetric, positive semi-definite A, all columns at once.

    Preconditioned conjugate gradients, one Krylov space per column: Hestenes and Stiefel 1952;
    Saad, "Iterative Methods for Sparse Linear Systems", 2003, algorithm 9.1. Columns leave the
    iteration as they converge, so later products have fewer columns. If A is singular and a column
    lies in its range, the solution found has no part in the null space beyond that of `x0`.

    Args:
        apply: Product with A; it is called with the columns that have not converged yet.
        rhs: Own rows of B.
        all_sum: Sum over shards; the identity in one process.
        x0: Where to start; zero by default.
        inverse_diagonal: Jacobi preconditioner: 1 / diag(A) of the own rows.
        tol: A column is done when its residual is at most `tol` times its norm in B.
        max_iter: Upper bound on the number of iterations.

    Raises:
        ValueError: `tol` is not positive or `max_iter` is negative.

    Cost:
        One product and two `all_sum` of C numbers per iteration; four n x C float64 buffers.
    """
    if not tol > 0 or max_iter < 0:
        raise ValueError(f"tol must be > 0 and max_iter >= 0, got {tol} and {max_iter}")
    b = rhs.to(torch.float64)
    scale = None if inverse_diagonal is None else inverse_diagonal.to(torch.float64)[:, None]

    solution = torch.zeros_like(b) if x0 is None else x0.to(torch.float64, copy=True)
    r = b.clone() if x0 is None else b - apply(solution)
    norms = all_sum((b * b).sum(0)).sqrt()
    # Columns of zeros are solved by zeros, whatever the start.
    solution[:, norms == 0] = 0
    z = r if scale is None else scale * r
    products = torch.stack([(r * r).sum(0), (r * z).sum(0)])
    rr, rz = all_sum(products)
    residuals = torch.where(norms > 0, rr.sqrt() / norms.clamp(min=1e-300), 0.0)
    start = _State(solution, r, z, rz, norms, residuals)
    iterations = _iterate(apply, start, scale, all_sum=all_sum, tol=tol, max_iter=max_iter)
    return CgResult(solution, residuals, iterations, residuals <= tol)


@dataclass(frozen=True)
class _State:
    """All columns before the first step: residual `r`, preconditioned `z`, and r z."""

    solution: Float64[Tensor, "n C"]
    r: Float64[Tensor, "n C"]
    z: Float64[Tensor, "n C"]
    rz: Float64[Tensor, " C"]
    norms: Float64[Tensor, " C"]
    residuals: Float64[Tensor, " C"]


def _iterate(
    apply: Operator,
    start: _State,
    scale: Tensor | None,
    *,
    all_sum: Callable[[Tensor], Tensor],
    tol: float,
    max_iter: int,
) -> int:
    """Work on `start.solution` and `start.residuals`; returns the number of iterations."""
    solution, residuals, norms = start.solution, start.residuals, start.norms
    active = (residuals > tol).nonzero()[:, 0]
    x, r = solution[:, active], start.r[:, active]
    p, rz = start.z[:, active].clone(), start.rz[active]
    iterations = 0
    while active.numel() and iterations < max_iter:
        iterations += 1
        ap = apply(p)
        curvature = all_sum((p * ap).sum(0))
        # No curvature is left where the direction has shrunk to the null space of A.
        alpha = torch.where(curvature > 0, rz / curvature.clamp(min=1e-300), 0.0)
        x, r = x + alpha * p, r - alpha * ap
        z = r if scale is None else scale * r
        rr, rz_next = all_sum(torch.stack([(r * r).sum(0), (r * z).sum(0)]))
        residuals[active] = rr.sqrt() / norms[active]
        p = z + (rz_next / rz.clamp(min=1e-300)) * p
        rz = rz_next
        keep = (residuals[active] > tol) & (curvature > 0)
        if not bool(keep.all()):
            solution[:, active] = x
            active = active[keep]
            x, r, p, rz = x[:, keep], r[:, keep], p[:, keep], rz[keep]
    solution[:, active] = x
    return iterations
