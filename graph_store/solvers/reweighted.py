"""Laplace learning on weights that grow towards the labeled nodes, for few labels."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Float64, Shaped
from torch import Tensor

from ..kernels.csr import Csr, row_sums, spmm
from ..view import Affinity
from .arrays import Array, as_labels
from .conjugate_gradient import conjugate_gradient
from .laplace import laplace
from .nearest_labeled import labeled_distances, row_minimum, until_settled
from .onehot import onehot

Reweighting = Literal["wnll", "poisson", "properly"]

# Lowest Poisson weight, as a share of the largest: weights must not vanish anywhere.
FLOOR = 1e-5
# Weights close to a labeled node are at most this many times the original ones.
MAX_FACTOR = 1e7


def reweighted_laplace(
    w: Affinity,
    labels: Array,
    reweighting: Reweighting = "poisson",
    *,
    tau: float = 0.0,
    tol: float = 1e-10,
    on_unreached: Literal["raise", "uniform"] = "raise",
    r0: float = 1.0,
    alpha: float = 2.0,
    num_classes: int | None = None,
    max_iter: int = 10_000,
) -> Any:
    """Laplace learning that does not lose its few labels: their surroundings weigh more.

    At low label rates the solution of `laplace` is nearly constant, with a spike at each label. All
    three reweightings multiply weights by a function a of the nodes:

    - "wnll": (a_i + a_j) / 2 with a = N / m at the m labeled nodes and 1 elsewhere. Shi, Osher and
      Zhu, "Weighted nonlocal Laplacian", J. Sci. Comput. 2017.
    - "poisson": a_i a_j with L a = sum_j (delta_j - 1 / N) over the labeled nodes j, shifted to be
      positive. Miller and Calder, "Poisson reweighted Laplacian uncertainty sampling", SIAM J.
      Math. Data Sci. 2023. In each component a is shifted so that its smallest value is
      1e-5 of the largest of all; 1 / N becomes the share of labeled nodes in the component.
    - "properly": (a_i + a_j) / 2 with a = 1 + (r0 / d)^alpha, at most 1e7, d the distance to the
      nearest labeled node. Calder and Slepcev, "Properly-weighted graph Laplacian", Appl. Math.
      Optim. 2020. Departure: d is measured along the graph (see `nearest_labeled`), where the
      shortest edge has length 1, as a store's solvers do not see the features.

    Args:
        w: Symmetric weights.
        labels: Given labels of the own rows, -1 = unlabeled.
        reweighting: Which one.
        tau, tol, on_unreached, num_classes, max_iter: See `laplace`.
        r0, alpha: Of "properly": how far and how steeply weights grow towards labels.

    Returns:
        (n, C) float64 as `laplace`.

    Raises:
        ValueError: An unknown reweighting, r0 or alpha that are not positive, or what `laplace`
            refuses.

    Cost:
        The edges' weights once more; "poisson" two solves with one column, "properly" a search for
        shortest paths.
    """
    if reweighting not in ("wnll", "poisson", "properly"):
        raise ValueError(
            f'reweighting must be "wnll", "poisson" or "properly", got {reweighting!r}'
        )
    if not (r0 > 0 and alpha > 0):
        raise ValueError(f"r0 and alpha must be > 0, got {r0} and {alpha}")
    given = as_labels(labels).to(w.degrees.device)
    onehot(given, w, num_classes)  # refuses labels that do not fit
    labeled = given >= 0
    if reweighting == "poisson":
        nodes = poisson_factors(w, labeled, tol=tol, max_iter=max_iter)
        scaled = Reweighted(w, nodes, "product")
    elif reweighting == "properly":
        distances, _ = labeled_distances(w, labeled)
        # Written with 1 / d, as d is infinite for unreached nodes.
        nodes = 1 + (r0 / distances).pow(alpha).clamp(max=MAX_FACTOR)
        scaled = Reweighted(w, nodes, "mean")
    else:
        factor = w.num_nodes / w.all_sum(labeled.sum())
        nodes = torch.where(labeled, factor, 1.0).to(torch.float64)
        scaled = Reweighted(w, nodes, "mean")
    return laplace(
        scaled, labels, tau, tol, on_unreached, num_classes=num_classes, max_iter=max_iter
    )


class Reweighted:
    """`Affinity` with every weight multiplied by the product or the mean of its nodes' factors."""

    def __init__(
        self, w: Affinity, nodes: Float64[Tensor, " n"], combine: Literal["product", "mean"]
    ) -> None:
        self.num_nodes = w.num_nodes
        self._w = w
        csr = w.csr
        ours, theirs = nodes.repeat_interleave(csr.offsets.diff()), w.extend(nodes)[csr.cols]
        factor = ours * theirs if combine == "product" else (ours + theirs) / 2
        self.csr = Csr(csr.offsets, csr.cols, csr.vals * factor, csr.num_cols)
        self._degrees = row_sums(self.csr)

    @property
    def degrees(self) -> Float[Tensor, " n"]:
        return self._degrees

    @property
    def own_columns(self) -> slice:
        return self._w.own_columns

    def extend(self, f: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "num_cols ..."]:
        return self._w.extend(f)

    def matmul(self, f: Float[Tensor, "n C"]) -> Float[Tensor, "n C"]:
        return spmm(self.csr, self.extend(f))

    def all_sum(self, x: Tensor) -> Tensor:
        return self._w.all_sum(x)

    def all_max(self, x: Tensor) -> Tensor:
        return self._w.all_max(x)


def poisson_factors(
    w: Affinity, labeled: Bool[Tensor, " n"], *, tol: float, max_iter: int
) -> Float64[Tensor, " n"]:
    """Solution of the Poisson equation with a source at every labeled node, made positive.

    The sources are first projected on the range of L (their mean in each component is taken off)
    by solving L y = L b from zero. Without preconditioner, under which the solution would leave
    the range.
    """
    degrees = w.degrees.to(torch.float64)[:, None]

    def system(u: Tensor) -> Tensor:
        return degrees * u - w.matmul(u)

    def solve(b: Tensor) -> Tensor:
        result = conjugate_gradient(system, b, all_sum=w.all_sum, tol=tol, max_iter=max_iter)
        return result.require_converged().solution

    b = labeled.to(torch.float64)[:, None]
    b = b - w.all_sum(b.sum()) / w.num_nodes
    u = solve(solve(system(b)))[:, 0]
    # The smallest value of each component, passed along the edges until nobody knows a smaller.
    lowest = until_settled(
        w, u, lambda low: torch.minimum(low, row_minimum(w, w.extend(low)[w.csr.cols]))
    )
    u = u - lowest
    largest = w.all_max(torch.cat([u, u.new_zeros(1)]).amax(0, keepdim=True))
    # Where all nodes are labeled, or no component has two nodes, there is nothing to weigh.
    return torch.where(largest > 0, u + FLOOR * largest, 1.0)
