"""Labels spread over weighted edges, differentiable in weights, base labels and tau.

The equations are those of the graph p-Laplacian with Tikhonov term, for every class and every row i
that is not a base row,

    sum_j w_ij phi(u_i - u_j) + tau u_i = 0,   phi(t) = |t|^(p-2) t,   u = Y on base rows.

Backward (GLL, theorem 5): with g = dJ/du, solve H Lambda = g once, H the derivative of the left
side with respect to u at the solution; then

    dJ/dw_ij = -sum_c (Lambda_i - Lambda_j) phi(u_i - u_j),  dJ/dtau = -sum Lambda u,
    dJ/dY = -H_bu Lambda.

For p = 2 the equations are linear, H = L_uu + tau I, one matrix for all classes.

Shape letters: n rows of the batch, b base rows, u the others, e edges, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ...graph_store.kernels.batch_graph import (
    BatchGraph,
    edge_products,
    incident_sums,
    laplacian,
    reachable,
)
from ...graph_store.kernels.compiled import task_threads
from ...graph_store.kernels.small_solve import Solve, System, column_sums, make_system
from .graph_learning_newton import edge_ratios, edge_slopes, linearize, minimize

OnUnreached = Literal["raise", "uniform"]

# Rows of a solution for labels that sum to 1 sum to 1. If one is off by more than this many times
# the tolerance, the system is solved as far as float64 goes, ...
_MAX_LEAK = 1e3
_LEAST_TOL = 1e-18
# ... and a row that is off by more even then has its base behind weights as small as rounding.
_MAX_FINAL_LEAK = 1e-3


@dataclass(frozen=True)
class Problem:
    """What is constant in the derivative.

    Attributes:
        base: Rows whose labels are given.
        tol: Relative residual, in the norm of the matrix scaled to a unit diagonal.
        threads: For the linear systems. All else has one: handing out such small work takes
            longer than doing it.
    """

    graph: BatchGraph
    base: Bool[Tensor, " n"]
    p: float
    tol: float
    on_unreached: OnUnreached
    threads: int = field(default_factory=torch.get_num_threads)


def spread(
    problem: Problem,
    weights: Float64[Tensor, " e"],
    base_probs: Float64[Tensor, "b C"],
    tau: Float64[Tensor, ""],
) -> Float64[Tensor, "u C"]:
    """Solution of the module's equations on the rows that are not base rows.

    Raises:
        ValueError: tau = 0, and rows are connected to no base row although problem.on_unreached
            is "raise"; or there is no convergence.
    """
    out: Tensor = _Spread.apply(problem, weights, base_probs, tau)  # type: ignore[no-untyped-call]
    return out


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, problem: Problem, weights: Tensor, base_probs: Tensor, tau: Tensor
    ) -> Tensor:
        with task_threads():
            ctx.problem, ctx.solved = problem, solve(problem, weights, base_probs, tau)
            ctx.save_for_backward(weights)
            u: Tensor = ctx.solved.u
            return u[~problem.base]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivatives()
        (weights,) = ctx.saved_tensors
        needs_labels = ctx.needs_input_grad[2]
        with task_threads():
            return None, *pull_back(ctx.problem, ctx.solved, weights, gradient, needs_labels)


def refuse_second_derivatives() -> None:
    """Fail where a backward pass is to be differentiated: its result would pass for a constant.

    Raises:
        RuntimeError: The pass was asked for with create_graph=True.
    """
    if torch.is_grad_enabled():
        raise RuntimeError(
            "the graph learning layer has no second derivatives; differentiate without "
            "create_graph=True"
        )


@dataclass(frozen=True)
class Solved:
    """A solution.

    Attributes:
        u: On all rows.
        system: Derivative of the equations there, on the rows that they determine.
        is_stiff: Whether it took a smaller tolerance than asked for.
    """

    u: Float64[Tensor, "n C"]
    system: System
    is_stiff: bool


def pull_back(
    problem: Problem,
    solved: Solved,
    weights: Float64[Tensor, " e"],
    gradient: Float64[Tensor, "u C"],
    needs_labels: bool = True,
) -> tuple[Float64[Tensor, " e"], Float64[Tensor, "b C"] | None, Float64[Tensor, ""]]:
    """From the derivative by the probabilities those by weights, base labels and tau."""
    graph, u = problem.graph, solved.u
    g = torch.zeros_like(u)
    g[~problem.base] = gradient
    adjoint = _run(
        Solve.begin(solved.system, g, problem.threads), problem.tol, solved.is_stiff
    ).solution
    by_labels = None
    if needs_labels:
        slopes = weights[:, None] * edge_slopes(graph, u, problem.p)
        by_labels = -laplacian(graph, slopes, adjoint)[problem.base]
    by_tau = -column_sums(column_sums(adjoint * u)[:, None])[0]
    return _by_weights(graph, adjoint, u, problem.p), by_labels, by_tau


def _by_weights(
    graph: BatchGraph, adjoint: Float64[Tensor, "n C"], u: Float64[Tensor, "n C"], p: float
) -> Float64[Tensor, " e"]:
    if p == 2:
        return -edge_products(graph, adjoint, u)
    i, j = graph.first, graph.second
    flow = edge_ratios(graph, u, p) * (u[i] - u[j])
    return -((adjoint[i] - adjoint[j]) * flow).sum(1)


def solve(
    problem: Problem,
    weights: Float64[Tensor, " e"],
    base_probs: Float64[Tensor, "b C"],
    tau: Float64[Tensor, ""],
) -> Solved:
    """The solution on all rows, see `spread`."""
    graph, base, w = problem.graph, problem.base, weights[:, None]
    free, is_stiff, has_tau = ~base, False, bool(tau > 0)
    given = base_probs.new_zeros(len(base), base_probs.shape[1])
    given[base] = base_probs
    diagonal = incident_sums(graph, w) + tau
    if not has_tau:
        free = free & reachable(graph, weights, base)
        # One more column: what rows sum to if those of the base sum to 1.
        given = torch.cat([given, base.to(given.dtype)[:, None]], dim=1)
    system = make_system(graph, w, diagonal, free)
    state = _run(Solve.begin(system, -laplacian(graph, w, given), problem.threads), problem.tol)
    if not has_tau:
        is_stiff = bool((_leak(state, free) > _MAX_LEAK * problem.tol).any())
    if is_stiff:
        state.run(_LEAST_TOL, _max_steps(state))
        free = free & (_leak(state, free) <= _MAX_FINAL_LEAK)
        system = make_system(graph, w, diagonal, free)
    u = given + torch.where(free[:, None], state.solution, 0.0)
    if not has_tau:
        # What weak links lose to rounding they lose of all columns alike.
        u = u[:, :-1] / torch.where(free, u[:, -1], 1.0)[:, None]
        u = _settle_lost(problem, u, ~base & ~free)
    if problem.p > 2:
        u = minimize(graph, w, tau, free, u, problem.p)
        system = linearize(graph, w, tau, free, u, problem.p)
    return Solved(u, system, is_stiff)


def _settle_lost(
    problem: Problem, u: Float64[Tensor, "n C"], lost: Bool[Tensor, " n"]
) -> Float64[Tensor, "n C"]:
    """Refuse rows that no label reaches, or give them the uniform distribution."""
    if problem.on_unreached == "uniform":
        return torch.where(lost[:, None], 1 / u.shape[1], u)
    rows = lost.nonzero()[:, 0]
    if len(rows):
        raise ValueError(
            f"{len(rows)} rows of the batch are connected to no base row, or only by weights as "
            f"small as rounding errors (rows {rows[:10].tolist()}{' ...' * (len(rows) > 10)}); add "
            'base rows, raise k, use tau > 0, or pass on_unreached="uniform"'
        )
    return u


def _leak(state: Solve, free: Bool[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """By how much the last column is not 1 where it should be."""
    return torch.where(free, (1 - state.solution[:, -1]).abs(), 0.0)


def _run(state: Solve, tol: float, is_stiff: bool = False) -> Solve:
    """The state once it is solved, and then as far as float64 goes if asked for."""
    if not state.run(tol, _max_steps(state)):
        worst = float((state.rr / state.start.clamp(min=1e-300)).max()) ** 0.5
        raise ValueError(
            f"no convergence in {state.steps} iterations of conjugate gradients: relative residual "
            f"{worst:.2g}; raise tol (it is {tol:.2g}) or use tau > 0"
        )
    if is_stiff:
        state.run(_LEAST_TOL, _max_steps(state))
    return state


def _max_steps(state: Solve) -> int:
    return 10 * len(state.x) + 100
