"""The graph p-Laplace equation on a batch by Newton's method, one system per class.

For every class, u minimises the convex energy

    1/p sum_ij w_ij |u_i - u_j|^p + kappa/2 sum_ij w_ij (u_i - u_j)^2 + tau/2 sum_i u_i^2

over undirected edges ij, with base rows fixed. Departure from the p-Laplacian: kappa = 1e-6. With
p > 2 alone the second derivative vanishes wherever neighbours agree, and neither Newton's method
nor the gradient of the layer would be defined there. Of edges with |u_i - u_j|^(p-2) >> kappa the
solution takes no notice.

Shape letters: n rows of the batch, e edges, C classes.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ...graph_store.kernels.batch_graph import BatchGraph, incident_sums, laplacian
from ...graph_store.kernels.small_solve import Solve, System, column_sums, make_system

KAPPA = 1e-6
# Ratio of one exponent to the last on the way from 2 to p: a start that is near is worth more.
_GROWTH = 1.5
_MAX_STEPS = 200
_MAX_HALVINGS = 60
# Steps end where they promise less than this share of the energy at the start, ...
_LEAST_GAIN = 1e-28
# ... or where rounding lets them promise no less than the last one, from this share on.
_STALLED_GAIN = 1e-20
_ON_THE_WAY = 1e-8


def edge_ratios(graph: BatchGraph, u: Float64[Tensor, "n C"], p: float) -> Float64[Tensor, "e C"]:
    """phi(t) / t of the differences t along edges, phi the derivative of the energy."""
    if p == 2:
        return torch.ones_like(u[graph.first])
    return (u[graph.first] - u[graph.second]).abs().pow(p - 2) + KAPPA


def edge_slopes(graph: BatchGraph, u: Float64[Tensor, "n C"], p: float) -> Float64[Tensor, "e C"]:
    """phi'(t) of the differences t along edges."""
    if p == 2:
        return torch.ones_like(u[graph.first])
    return (p - 1) * (u[graph.first] - u[graph.second]).abs().pow(p - 2) + KAPPA


def linearize(
    graph: BatchGraph,
    weights: Float64[Tensor, "e 1"],
    tau: Float64[Tensor, ""],
    free: Bool[Tensor, " n"],
    u: Float64[Tensor, "n C"],
    p: float,
) -> System:
    """Second derivative of the energy on the free rows."""
    slopes = weights * edge_slopes(graph, u, p)
    return make_system(graph, slopes, incident_sums(graph, slopes) + tau, free)


def minimize(
    graph: BatchGraph,
    weights: Float64[Tensor, "e 1"],
    tau: Float64[Tensor, ""],
    free: Bool[Tensor, " n"],
    start: Float64[Tensor, "n C"],
    p: float,
) -> Float64[Tensor, "n C"]:
    """The solution on the free rows, other rows as in `start`, which solves the case p = 2.

    Raises:
        ValueError: No convergence.
    """
    problem, q = _Energy(graph, weights, tau, free), 2.0
    u = start
    while q < p:
        q = min(p, q * _GROWTH)
        u = problem.descend(u, q, _LEAST_GAIN if q == p else _ON_THE_WAY)
    return u


class _Energy:
    def __init__(
        self,
        graph: BatchGraph,
        weights: Float64[Tensor, "e 1"],
        tau: Float64[Tensor, ""],
        free: Bool[Tensor, " n"],
    ) -> None:
        self.graph, self.weights, self.tau, self.free = graph, weights, tau, free

    def gradient(self, u: Float64[Tensor, "n C"], p: float) -> Float64[Tensor, "n C"]:
        """Left side of the equations; zero on rows that are not free."""
        flow = laplacian(self.graph, self.weights * edge_ratios(self.graph, u, p), u)
        return torch.where(self.free[:, None], flow + self.tau * u, 0.0)

    def descend(self, u: Float64[Tensor, "n C"], p: float, least: float) -> Float64[Tensor, "n C"]:
        """Newton steps until they promise less than `least` of the energy at the start."""
        scale, last = self._size(u, p), None
        for _ in range(_MAX_STEPS):
            gradient = self.gradient(u, p)
            solve = Solve.begin(
                linearize(self.graph, self.weights, self.tau, self.free, u, p), -gradient
            )
            # The first steps need not be exact; the last ones bring as many digits as they have.
            share = 1.0 if last is None else float((last / scale).max())
            solve.run(min(1e-2, max(1e-10, share**0.5)), 10 * len(u) + 100)
            step = solve.solution
            gain = -column_sums(gradient * step)
            if bool((gain <= least * scale).all()):
                return u + step
            if (
                last is not None
                and bool(((gain >= last) & (gain > least * scale)).any())
                and bool((gain <= _STALLED_GAIN * scale).all())
            ):
                return u
            u = u + self._length(u, step, -gain, p) * step
            last = gain
        raise ValueError(
            f"no convergence of the graph p-Laplacian with p = {p} in {_MAX_STEPS} Newton steps; "
            "lower p or use tau > 0"
        )

    def _size(self, u: Float64[Tensor, "n C"], p: float) -> Float64[Tensor, " C"]:
        """About the energy; 1 where it is 0."""
        t = u[self.graph.first] - u[self.graph.second]
        size = column_sums(self.weights * edge_ratios(self.graph, u, p) * t.square())
        size = size + self.tau * column_sums(u.square())
        return torch.where(size > 0, size, 1.0)

    def _length(
        self, u: Float64[Tensor, "n C"], step: Float64[Tensor, "n C"], slope: Tensor, p: float
    ) -> Float64[Tensor, " C"]:
        """Share of the step, per class, that does not lead far beyond the minimum along it.

        The energy is convex, so its derivative along the step tells where the minimum is; energies
        themselves would soon differ by rounding errors alone.
        """
        length = torch.ones_like(slope)
        for _ in range(_MAX_HALVINGS):
            ahead = column_sums(self.gradient(u + length * step, p) * step)
            too_far = ahead > -0.5 * slope
            if not bool(too_far.any()):
                break
            # Where the derivative would vanish if it were linear, but not too timidly.
            guess = length * (-slope / (ahead - slope).clamp(min=1e-300))
            length = torch.where(too_far, guess.clamp(min=0.1 * length), length)
        return length
