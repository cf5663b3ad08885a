"""A classifier without weights: labels spread over the kNN graph of a batch, differentiably.

Brown, O'Neill, Calder and Bertozzi, "GLL: A Differentiable Graph Learning Layer for Neural
Networks", 2024. Everything is done on the edges of the graph, in float64; there is no n x n array.

Shape letters: n rows of the batch, d feature width, b base rows, u the others, e edges, C classes.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor, nn

from ...graph_store.kernels.batch_graph import (
    BatchGraph,
    connect,
    incident_sums,
    laplacian,
)
from ...graph_store.kernels.batch_knn import nearest
from ...graph_store.kernels.compiled import task_threads
from ...graph_store.solvers.arrays import Array, as_labels, as_tensor, like
from .graph_learning_checks import base_rows, check_arguments, check_batch
from .graph_learning_solve import OnUnreached, Problem, refuse_second_derivatives, spread

# Identical points have a bandwidth of zero.
_MIN_BANDWIDTH = 1e-10
# Relative residuals that leave nothing to gain for results of these types.
_TOLERANCE = {torch.float32: 1e-9, torch.float64: 1e-13}


class GraphLearningLayer(nn.Module):
    """Class probabilities of the rows without a label, from the features of a batch.

    The rows are joined to their `k` nearest neighbours (i and j if either lists the other) with

        w_ij = exp(-4 |x_i - x_j|^2 / (eps_i eps_j)),   eps_i = distance to the k-th neighbour,

    and with L = D - W the labels Y_b of the base rows are extended to the others by

        (L_uu + tau I) U = -L_ub Y_b.

    Gradients are exact: of U with respect to the features (bandwidths included; which rows are
    neighbours is held constant), `base_probs` and `tau`. They are first derivatives only. Features
    in float16 or bfloat16 are widened to float32; the result is float64 for float64 features and
    float32 otherwise. All sums have a fixed order: the same input gives the same bits.

    Departures from the paper: `k` does not count the row itself (their 25 is our 24), and for p > 2
    see `graph_learning_newton`.

    Args:
        k: Neighbours of each row, without itself.
        tau: Tikhonov term, at least 0; a float, or a scalar tensor or parameter that gets a
            gradient. With 0, rows sum to 1 (if those of `base_probs` do); above, predictions decay
            away from the base, and rows that are connected to no base row are zero.
        bandwidth: "self_tuning", or one number for all eps_i.
        p: At least 2. Above, the graph p-Laplacian sum_j w_ij |u_i - u_j|^(p-2) (u_i - u_j) is
            solved instead, for each class on its own: with more than two classes, rows need not
            sum to 1.
        on_unreached: With tau = 0, rows that are connected to no base row are undetermined:
            "raise" refuses them, "uniform" gives them the uniform distribution and no gradient.
        tol: Relative residual of the linear solves; by default, as small as the result's type
            deserves.

    Raises:
        ValueError: An argument is out of its range.

    Cost:
        n^2 d multiplications for the neighbours; about 30 products with a sparse matrix of n k
        to 2 n k entries each forward and backward; memory of O(n k C + n d) numbers.

    Example:
        Two pairs of points; one of each pair is a base row.

        >>> layer = GraphLearningLayer(k=1, on_unreached="raise")
        >>> x = torch.tensor([[0.0, 0.0], [0.0, 1.0], [5.0, 0.0], [5.0, 1.0]])
        >>> layer(x, torch.tensor([0, -1, 1, -1]))
        tensor([[1., 0.],
                [0., 1.]])
    """

    def __init__(
        self,
        k: int = 24,
        tau: float | int | Tensor = 0.0,
        bandwidth: Literal["self_tuning"] | float | int = "self_tuning",
        p: float | int = 2.0,
        on_unreached: OnUnreached = "raise",
        tol: float | None = None,
    ) -> None:
        super().__init__()
        check_arguments(k, tau, bandwidth, p, on_unreached, tol)
        self.k, self.bandwidth, self.p = k, bandwidth, float(p)
        self.tau = tau
        self.on_unreached: OnUnreached = on_unreached
        self.tol = tol

    def extra_repr(self) -> str:
        tau = self.tau.detach().item() if isinstance(self.tau, Tensor) else self.tau
        return f"k={self.k}, tau={tau}, bandwidth={self.bandwidth!r}, p={self.p}"

    def forward(
        self,
        features: Array,
        labels: Array,
        num_classes: int | None = None,
        base_probs: Array | None = None,
    ) -> Any:
        """Probabilities of the rows whose label is -1, in row order: (u, C).

        Args:
            features: (n, d). Arrays give an array back, without gradients.
            labels: (n,) integers, -1 for the rows to be predicted; the others are base rows.
            num_classes: C; the largest label plus one by default.
            base_probs: (b, C) class distributions of the base rows, in row order; their labels
                one-hot by default.

        Raises:
            ValueError: No base row, labels or shapes that do not fit, features that are not
                finite, no more than k rows, unreached rows (see `on_unreached`), or a `tau` that
                has become negative.
        """
        soft = None if base_probs is None else as_tensor(base_probs)
        probs = self._predict(as_tensor(features), as_labels(labels), num_classes, soft)
        return probs if isinstance(features, Tensor) else like(probs.detach(), features)

    def _predict(
        self,
        features: Tensor,
        labels: Int64[Tensor, " n"],
        num_classes: int | None,
        base_probs: Float[Tensor, "b C"] | None,
    ) -> Float[Tensor, "u C"]:
        with task_threads():
            check_batch(features, labels, self.k)
        given = base_rows(labels, num_classes, base_probs)
        dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        base = labels >= 0
        with torch.autocast(features.device.type, enabled=False):
            x = features.to(dtype)
            if bool(base.all()):
                # Tied to the features, so that a loss of nothing can be sent back.
                return x.sum() * 0 + x.new_zeros(0, given.shape[1])
            graph, weights = batch_weights(x, self.k, self.bandwidth)
            tol = _TOLERANCE[dtype] if self.tol is None else self.tol
            problem = Problem(graph, base, self.p, tol, self.on_unreached)
            u = spread(problem, weights, given.to(torch.float64), self._tau(x.device))
            return u.to(dtype)

    def _tau(self, device: torch.device) -> Float64[Tensor, ""]:
        tau = torch.as_tensor(self.tau, dtype=torch.float64).to(device).reshape(())
        if not bool(tau >= 0):
            raise ValueError(f"tau must be >= 0, got {tau.item()}; keep a learned tau positive")
        return tau


def batch_weights(
    x: Float[Tensor, "n d"], k: int, bandwidth: Literal["self_tuning"] | float | int
) -> tuple[BatchGraph, Float64[Tensor, " e"]]:
    """The graph of a batch and the weights of its edges, differentiable in the features."""
    ids, distances = nearest(x.detach(), k)
    graph = connect(ids)
    constant = None if bandwidth == "self_tuning" else float(bandwidth)
    weights: Tensor = _Weights.apply(x, graph, distances, constant)  # type: ignore[no-untyped-call]
    return graph, weights


class _Weights(torch.autograd.Function):
    """exp(-4 d^2 / (eps_i eps_j)) of every edge.

    The search has computed the distances. Of ordinary operations, differences of features would be
    an e x d array, and their gradient a second one. One thread: there is little to do.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, graph: BatchGraph, distances: Tensor, constant: float | None
    ) -> Tensor:
        with task_threads():
            squared = graph.per_edge(distances.square())
            if constant is None:
                eps = distances[:, -1].clamp(min=_MIN_BANDWIDTH)
            else:
                eps = distances.new_full(distances.shape[:1], constant)
            scale = -4 / (eps[graph.first] * eps[graph.second])
            weights = torch.exp(squared * scale)
            ctx.save_for_backward(x, squared, eps, scale, weights)
        ctx.graph, ctx.is_constant = graph, constant is not None
        return weights

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        refuse_second_derivatives()
        x, squared, eps, scale, weights = ctx.saved_tensors
        graph, farthest = ctx.graph, ctx.graph.listed[:, -1]
        with task_threads():
            by_squared = gradient * weights * scale
            if not ctx.is_constant:
                by_eps = -incident_sums(graph, by_squared * squared) / eps
                # The bandwidth is the root of a squared distance, unless that is too small.
                by_farthest = torch.where(eps > _MIN_BANDWIDTH, by_eps / (2 * eps), 0.0)
                by_squared.index_put_((farthest,), by_farthest, accumulate=True)
            coefficients = 2 * by_squared[:, None]
        by_x = laplacian(graph, coefficients, x)
        with task_threads():
            return by_x.to(x.dtype), None, None, None
