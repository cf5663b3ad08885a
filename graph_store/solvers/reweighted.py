"""Laplace learning on weights that grow towards the labeled nodes, for few labels."""

from __future__ import annotations

from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64, Shaped
from torch import Tensor

from ..kernels.csr import Csr, row_sums, spmm
from ..view import Affinity, Reduce
from .arrays import Array, as_labels
from .components import components, sum_by_component
from .graph_system import graph_system
from .laplace import laplace
from .nearest_labeled import labeled_distances
from .onehot import onehot
from .reductions import largest

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
        The edges' weights once more; "poisson" a solve with one column, "properly" a search for
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
        scaled,
        labels,
        tau,
        tol * _evenness(scaled, labeled),
        on_unreached,
        num_classes=num_classes,
        max_iter=max_iter,
    )


def _evenness(w: Affinity, labeled: Bool[Tensor, " n"]) -> float:
    """Harmonic mean of the unlabeled nodes' degrees over the largest one, in (0, 1].

    Residuals are measured against what the labeled nodes send to their neighbours. Where all other
    weights are that much smaller, so must the residual be for the same error.
    """
    degrees = w.degrees.to(torch.float64)[~labeled]
    degrees = degrees[degrees > 0]
    sums = torch.stack(
        [(largest(degrees, w.all_max) / degrees).sum(), torch.ones_like(degrees).sum()]
    )
    inverse, count = w.all_sum(sums).tolist()
    return count / inverse if count else 1.0


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

    @property
    def node_ids(self) -> Int64[Tensor, " n"]:
        return self._w.node_ids

    def gather(self, x: Shaped[Tensor, "n ..."], ids: Int64[Tensor, " m"]) -> Tensor:
        return self._w.gather(x, ids)

    def scatter(
        self, x: Shaped[Tensor, "m ..."], ids: Int64[Tensor, " m"], out: Tensor, reduce: Reduce
    ) -> Tensor:
        return self._w.scatter(x, ids, out, reduce)

    def all_sum(self, x: Tensor) -> Tensor:
        return self._w.all_sum(x)

    def all_max(self, x: Tensor) -> Tensor:
        return self._w.all_max(x)


def poisson_factors(
    w: Affinity, labeled: Bool[Tensor, " n"], *, tol: float, max_iter: int
) -> Float64[Tensor, " n"]:
    """Solution of the Poisson equation with a source at every labeled node, made positive."""
    component, degrees = components(w), w.degrees.to(torch.float64)
    sources = labeled.to(torch.float64)[:, None]
    ones = torch.ones_like(sources)
    sources = sources - (
        sum_by_component(w, component, sources) / sum_by_component(w, component, ones)
    )
    # The row of a node without edges is empty, and its source zero.
    diagonal = torch.where(degrees > 0, degrees, 1.0)
    system = graph_system(w, diagonal=diagonal, scale=ones[:, 0])
    result = system.solve(sources, tol=tol, max_iter=max_iter)
    u = result.require_converged().solution[:, 0]
    # Each component is determined up to a constant: its smallest value becomes zero.
    u = u + w.gather(w.scatter(-u, component, -u, "amax"), component)
    top = largest(u, w.all_max)
    # Where all or none of the nodes of every component are labeled there is nothing to weigh.
    return torch.where(top > 0, u + FLOOR * top, 1.0)
