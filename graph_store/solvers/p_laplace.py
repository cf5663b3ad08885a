"""Variational p-Laplace learning: labels extended so that large differences cost more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ..kernels.p_laplacian import flow, stiffness
from ..view import Affinity
from .arrays import Array, as_labels, like
from .conjugate_gradient import conjugate_gradient
from .laplace import laplace, reachable

# Differences below this (labels are 0 and 1) do not stiffen the linear systems any less, and a
# column that has no larger ones counts as constant.
SMALLEST = 1e-9
# From the solution of one exponent to the next: up to this factor, in half numbers.
EXPONENT_STEP = 1.5
# Residual after which an intermediate exponent is left.
LOOSE = 0.1
CG_TOL = 0.1
MAX_TRIALS = 10


def p_laplace(
    w: Affinity,
    labels: Array,
    p: float = 3.0,
    tau: float = 0.0,
    *,
    tol: float = 1e-8,
    on_unreached: Literal["raise", "uniform"] = "raise",
    num_classes: int | None = None,
    max_iter: int = 10_000,
    max_steps: int = 200,
) -> Any:
    """Extend given labels to all nodes with the least p-energy, each class by itself.

    Minimises sum_{i<j} w_ij |u_i - u_j|^p / p + tau / 2 sum_i u_i^2 with u = Y at the labeled
    nodes, so that sum_j w_ij |u_i - u_j|^(p-2) (u_i - u_j) + tau u_i = 0 at the others: El Alaoui
    et al., "Asymptotic behavior of l_p-based Laplacian regularization in semi-supervised
    learning", COLT 2016. The larger p, the less the solution spikes at few labels. p = 2 is
    `laplace`. Newton's method with line search, from the solution of smaller p (Flores, Calder and
    Lerman, "Analysis and algorithms for l_p-based semi-supervised learning on graphs", Appl.
    Comput. Harmon. Anal. 2022); each step solves the linearised equation of all classes
    by conjugate gradients.

    Args:
        w: Symmetric weights.
        labels: Given labels of the own rows, -1 = unlabeled.
        p: At least 2; up to about 10 is practical.
        tau: At least 0; above, values decay away from the labels.
        tol: A class is done when the norm of the equation's left side over the unlabeled nodes is
            at most this share of its norm over the labeled nodes. Differences u_i - u_j are then
            right up to the order of tol^(1 / (p - 1)) where they are smallest.
        on_unreached: See `laplace`.
        num_classes: C; by default the largest label plus one. Shards must pass it.
        max_iter: Upper bound on the products with W of one linear system.
        max_steps: Upper bound on Newton steps.

    Returns:
        (n, C) float64 between 0 and 1 up to solver error; labeled rows are one-hot. Rows sum to 1
        only for p = 2 or two classes. Array or tensor as `labels` is.

    Raises:
        ValueError: p < 2, what `laplace` refuses, or no convergence within `max_steps`.

    Cost:
        Tens of Newton steps, each with tens to hundreds of products of edges x C operations; a
        dozen n x C buffers, nothing of edges x C.
    """
    if not 2 <= p < float("inf"):
        raise ValueError(f"p must be a number >= 2, got {p}")
    if not tol > 0 or max_steps < 1:
        raise ValueError(f"tol must be > 0 and max_steps >= 1, got {tol} and {max_steps}")
    given = as_labels(labels).to(w.degrees.device)
    start = laplace(
        w,
        given,
        tau,
        tol if p == 2 else min(tol, 1e-6),
        on_unreached,
        num_classes=num_classes,
        max_iter=max_iter,
    )
    if p == 2:
        return like(start, labels)
    labeled = given >= 0
    problem = _Problem(w, labeled, reachable(w, labeled) & ~labeled, tau, max_iter)
    u, steps = start, 0
    for exponent in _exponents(p):
        goal = tol if exponent == p else LOOSE
        u, steps, residual = _minimise(problem, u, exponent, goal, steps, max_steps)
    if float(residual.max()) > tol:
        raise ValueError(
            f"no convergence in {max_steps} Newton steps, largest relative residual "
            f"{float(residual.max()):.2g}; raise max_steps or tol, or lower p"
        )
    return like(u, labels)


def _exponents(p: float) -> list[float]:
    steps, exponent = [], 2.0
    while exponent < p:
        exponent = min(p, round(2 * EXPONENT_STEP * exponent) / 2)
        steps.append(exponent)
    return steps


@dataclass(frozen=True)
class _Problem:
    w: Affinity
    labeled: Bool[Tensor, " n"]
    free: Bool[Tensor, " n"]
    tau: float
    max_iter: int

    def gradient(self, u: Float64[Tensor, "n C"], p: float) -> Float64[Tensor, "n C"]:
        """Left side of the equation at the free nodes, what flows out at the labeled ones."""
        buffer = self.w.extend(u)
        g = flow(self.w.csr, buffer, buffer, self.w.own_columns, p - 2)
        return torch.where(self.free[:, None], g + self.tau * u, g)

    def residual(self, g: Float64[Tensor, "n C"], p: float) -> Float64[Tensor, " C"]:
        """The gradient's norm over the free nodes, relative to that over the labeled ones."""
        squares, degrees = g.square(), self.w.degrees.to(torch.float64)
        parts = [squares[self.free].sum(0), squares[self.labeled].sum(0)]
        sums = self.w.all_sum(torch.cat([*parts, degrees.square().sum().reshape(1)]))
        inner, outer = sums[:-1].sqrt().chunk(2)
        nothing = sums[-1].sqrt() * SMALLEST ** (p - 1)
        return torch.where(inner <= nothing, 0.0, inner / outer.clamp(min=1e-300))

    def newton_step(
        self, u: Float64[Tensor, "n C"], g: Float64[Tensor, "n C"], p: float
    ) -> Float64[Tensor, "n C"]:
        """-H^-1 g over the free nodes, all classes as one block-diagonal system."""
        buffer, own, free = self.w.extend(u), self.w.own_columns, self.free[:, None]
        diagonal = (p - 1) * stiffness(self.w.csr, buffer, own, p - 2, SMALLEST) + self.tau

        def system(x: Tensor) -> Tensor:
            columns = x.reshape(u.shape)
            moved = flow(self.w.csr, buffer, self.w.extend(columns), own, p - 2, SMALLEST)
            return torch.where(free, (p - 1) * moved + self.tau * columns, 0.0).reshape(x.shape)

        rhs = torch.where(free, -g, 0.0)
        # Columns of one length: classes with small gradients are solved as well as the others.
        length = self.w.all_sum(rhs.square().sum(0)).sqrt().clamp(min=1e-300)
        result = conjugate_gradient(
            system,
            (rhs / length).reshape(-1, 1),
            all_sum=self.w.all_sum,
            inverse_diagonal=torch.where(free, 1 / diagonal.clamp(min=1e-300), 0.0).reshape(-1),
            tol=CG_TOL,
            max_iter=self.max_iter,
        )
        return result.solution.reshape(u.shape) * length


def _minimise(
    problem: _Problem,
    u: Float64[Tensor, "n C"],
    p: float,
    tol: float,
    steps: int,
    max_steps: int,
) -> tuple[Float64[Tensor, "n C"], int, Float64[Tensor, " C"]]:
    """Newton steps on the classes whose residual is above `tol`, until none is."""
    u = u.clone()
    g = problem.gradient(u, p)
    residual = problem.residual(g, p)
    while steps < max_steps and float(residual.max()) > tol:
        active = (residual > tol).nonzero()[:, 0]
        step = problem.newton_step(u[:, active], g[:, active], p)
        u[:, active], g[:, active] = _search(problem, u[:, active], g[:, active], step, p)
        residual = problem.residual(g, p)
        steps += 1
    return u, steps, residual


def _search(
    problem: _Problem,
    u: Float64[Tensor, "n c"],
    g: Float64[Tensor, "n c"],
    step: Float64[Tensor, "n c"],
    p: float,
) -> tuple[Float64[Tensor, "n c"], Float64[Tensor, "n c"]]:
    """Where the energy's slope along the step has all but vanished, and the gradient there.

    By the slope alone, which is monotonic as the energy is convex: differences of energies drown
    in rounding long before. Newton's steps are too short by up to p - 1 where differences vanish,
    so lengths above 1 are tried as well.
    """

    def slope(at: Tensor) -> Tensor:
        return problem.w.all_sum((at * step).sum(0))

    first = slope(g)
    low, low_slope = torch.zeros_like(first), first
    high, high_slope = torch.full_like(first, torch.inf), torch.full_like(first, torch.inf)
    length = torch.ones_like(first)
    for _ in range(MAX_TRIALS):
        moved = u + length * step
        after = problem.gradient(moved, p)
        now = slope(after)
        good = now.abs() <= 0.3 * first.abs()
        if bool(good.all()):
            break
        short = now < 0
        low, low_slope = torch.where(short, length, low), torch.where(short, now, low_slope)
        high = torch.where(short, high, length)
        high_slope = torch.where(short, high_slope, now)
        cut = low + (high - low) * low_slope / (low_slope - high_slope)
        width = high - low
        cut = torch.minimum(torch.maximum(cut, low + 0.1 * width), high - 0.1 * width)
        length = torch.where(good, length, torch.where(high.isinf(), 2 * length, cut))
    return moved, after
