"""Conjugate gradients for several right-hand sides at once, on any linear operator.

The operator may be spread over shards: it maps own rows to own rows, and scalar products are summed
by `all_sum`, the same numbers on every shard, so that all shards take the same decisions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ..kernels.cg_steps import Steps, even_segments

Operator = Callable[[Float[Tensor, "n c"]], Float[Tensor, "n c"]]

# Off the CPU, looking at the residuals stops the queue of kernels.
_CHECK_EVERY = 4


@dataclass(frozen=True)
class Coarse:
    """A coarse space for the second level of the preconditioner: one vector per segment of rows.

    Attributes:
        segments: Offsets of the own rows' segments; the first `inverse.shape[0]` have a vector.
        basis: Values of the vectors on their rows.
        inverse: Inverse of the operator's restriction to the coarse space; the same on all shards.
    """

    segments: Int64[Tensor, " s1"]
    basis: Float64[Tensor, " n"]
    inverse: Float64[Tensor, "g g"]


@dataclass(frozen=True)
class CgResult:
    """Attributes:
    solution: One column per right-hand side.
    residuals: |b - A x| / |b| of each column, as carried along by the recursion; 0 where b = 0.
    iterations: Products with the operator, apart from the one that a warm start needs.
    converged: Whether the residual of a column is within the tolerance.
    history: The residuals before the first iteration and after each; on the CPU.
    """

    solution: Float[Tensor, "n C"]
    residuals: Float64[Tensor, " C"]
    iterations: int
    converged: Bool[Tensor, " C"]
    history: Float64[Tensor, "t C"]

    def require_converged(self) -> CgResult:
        """This result, or a ValueError if a column is not solved to its tolerance."""
        if not bool(self.converged.all()):
            single = self.solution.dtype == torch.float32
            raise ValueError(
                f"no convergence in {self.iterations} iterations, largest relative residual "
                f"{float(self.residuals.max()):.2g}; raise max_iter or tol"
                + (", or solve with dtype=torch.float64" if single else "")
            )
        return self


def conjugate_gradient(
    apply: Operator,
    rhs: Float[Tensor, "n C"],
    *,
    all_sum: Callable[[Tensor], Tensor],
    x0: Float[Tensor, "n C"] | None = None,
    inverse_diagonal: Float[Tensor, " n"] | None = None,
    coarse: Coarse | None = None,
    tol: float = 1e-6,
    max_iter: int = 1000,
) -> CgResult:
    """Solve A X = B for a symmetric, positive semi-definite A, all columns at once.

    Preconditioned conjugate gradients, one Krylov space per column: Hestenes and Stiefel 1952;
    Saad, "Iterative Methods for Sparse Linear Systems", 2003, algorithm 9.1. Columns leave the
    iteration as they converge, so later products have fewer columns. If A is singular and a column
    lies in its range, the solution found has no part in the null space beyond that of `x0` (and of
    what a preconditioner brings in).

    The preconditioner is additive: z = M r + V E^-1 V^T r, with M = `inverse_diagonal` (Jacobi) and
    the coarse space V (Nicolaides 1987), which takes care of the slow modes that are nearly
    constant over clusters.

    Args:
        apply: Product with A; it is called with the columns that have not converged yet.
        rhs: Own rows of B. float32 stays float32 (sums are float64); all else becomes float64.
        all_sum: Sum over shards; the identity in one process.
        x0: Where to start; zero by default.
        inverse_diagonal: 1 / diag(A) of the own rows.
        coarse: Second level of the preconditioner.
        tol: A column is done when its residual is at most `tol` times its norm in B.
        max_iter: Upper bound on the number of iterations.

    Raises:
        ValueError: `tol` is not positive or `max_iter` is negative.

    Cost:
        One product, three fused passes over n x C and two `all_sum` (of C and of (2 + g) C numbers)
        per iteration; four n x C buffers.
    """
    if not tol > 0 or max_iter < 0:
        raise ValueError(f"tol must be > 0 and max_iter >= 0, got {tol} and {max_iter}")
    b = rhs.contiguous() if rhs.dtype == torch.float32 else rhs.to(torch.float64).contiguous()
    steps = _make_steps(b, inverse_diagonal, coarse)
    norms = all_sum(steps.dot(b, b)).sqrt()
    x, r = torch.zeros_like(b), b.clone()
    if x0 is not None:
        x = x0.to(b.dtype, copy=True).contiguous()
        r -= apply(x)
    del b, rhs  # a block that the caller may have made for this call alone
    # Columns of zeros are solved by zeros, whatever the start.
    x[:, norms == 0] = 0
    state = _State(steps, None if coarse is None else coarse.inverse, all_sum, norms, tol)
    return _iterate(apply, state, x, r, max_iter)


def _make_steps(b: Tensor, inverse_diagonal: Tensor | None, coarse: Coarse | None) -> Steps:
    ones = b.new_ones(b.shape[0])
    return Steps(
        even_segments(b.shape[0], b.device) if coarse is None else coarse.segments,
        ones if inverse_diagonal is None else inverse_diagonal.to(b.dtype).contiguous(),
        torch.zeros_like(ones) if coarse is None else coarse.basis.to(b.dtype),
        0 if coarse is None else coarse.inverse.shape[0],
    )


@dataclass(frozen=True)
class _State:
    """What does not change while columns come and go."""

    steps: Steps
    coarse_inverse: Float64[Tensor, "g g"] | None
    all_sum: Callable[[Tensor], Tensor]
    norms: Float64[Tensor, " C"]
    tol: float

    def measure(
        self, sums: Float64[Tensor, "m c"], norms: Float64[Tensor, " c"]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Relative residuals, r z, and the coarse part of z, from an `advance`'s sums."""
        square, scaled, restricted = sums[0], sums[1], sums[2:]
        residuals = torch.where(norms > 0, square.sqrt() / norms.clamp(min=1e-300), 0.0)
        if self.coarse_inverse is None:
            return residuals, scaled, restricted
        lifted = self.coarse_inverse @ restricted
        return residuals, scaled + (restricted * lifted).sum(0), lifted


def _iterate(apply: Operator, state: _State, x: Tensor, r: Tensor, max_iter: int) -> CgResult:
    steps, all_sum, norms = state.steps, state.all_sum, state.norms
    # A step of length zero only takes the sums.
    sums = all_sum(steps.advance(x, r, r, r, torch.zeros_like(norms)))
    now, rz, lifted = state.measure(sums, norms)
    solution, residuals, history = x, now.clone(), [now.clone()]
    active = torch.arange(norms.shape[0], device=norms.device)
    p, keep = torch.zeros_like(r), now > state.tol
    beta, curvature = torch.zeros_like(rz), torch.ones_like(rz)
    iterations = 0
    while True:
        looks = iterations % _CHECK_EVERY == 0 or r.device.type == "cpu"
        if (looks or iterations == max_iter) and not bool(keep.all()):
            solution = x if x is solution else solution.index_copy_(1, active, x)
            active, kept = active[keep], keep.nonzero()[:, 0]
            x, r, p = (part.index_select(1, kept) for part in (x, r, p))
            rz, beta, lifted = rz[keep], beta[keep], lifted.index_select(1, kept)
        if iterations == max_iter or active.numel() == 0:
            break
        iterations += 1
        steps.turn(p, r, lifted, beta)
        q = apply(p)
        curvature = all_sum(steps.dot(p, q))
        # No curvature is left where the direction has shrunk to the null space of A.
        alpha = torch.where(curvature > 0, rz / curvature.clamp(min=1e-300), 0.0)
        sums = all_sum(steps.advance(x, r, p, q, alpha))
        now, rz_next, lifted = state.measure(sums, norms[active])
        beta, rz = rz_next / rz.clamp(min=1e-300), rz_next
        residuals[active] = now
        history.append(residuals.clone())
        keep = (now > state.tol) & (curvature > 0)
    if x is not solution:
        solution.index_copy_(1, active, x)
    return CgResult(
        solution, residuals, iterations, residuals <= state.tol, torch.stack(history).cpu()
    )
