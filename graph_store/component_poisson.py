"""Poisson learning on each component of a graph by itself.

Over the whole graph a component whose labels are not distributed like all labels has sources that
do not sum to zero: there is no solution, and that of least squares puts a component with labels of
one class half into other classes. Here the sources of a component are taken against the mean of its
own labels, so there always is one, and a component's only class is certain.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from .solvers.components import components, sum_by_component, without_means
from .solvers.graph_system import GraphSystem, graph_system
from .solvers.local_global import inverse_sqrt
from .view import Affinity


@dataclass(frozen=True)
class ComponentCounts:
    """Given labels in the component of each own node.

    Attributes:
        component: A node of the component, the same for all of its nodes.
        labels: How many labels of each class its component has.
    """

    component: Int64[Tensor, " n"]
    labels: Float64[Tensor, "n C"]

    @property
    def reached(self) -> Bool[Tensor, " n"]:
        """Nodes whose component has any label."""
        return self.labels.sum(1) > 0


class ComponentPoisson:
    """The components of a graph and its Poisson equation, prepared once for any labels.

    The equation is solved in v = D^1/2 u, where its matrix is I - S. Everything is collective.
    """

    def __init__(self, w: Affinity) -> None:
        self._w = w
        self._component = components(w)
        self._system: GraphSystem | None = None

    def count(self, y: Float64[Tensor, "n C"]) -> ComponentCounts:
        """Count one-hot labels (zero rows: unlabeled) in each component."""
        return ComponentCounts(self._component, sum_by_component(self._w, self._component, y))

    def solve(
        self,
        y: Float64[Tensor, "n C"],
        counts: ComponentCounts,
        *,
        tol: float = 1e-12,
        max_iter: int = 10_000,
    ) -> Float64[Tensor, "n C"]:
        """L u = sum_j (y_j - ybar_K) delta_j, ybar_K the mean label of j's component K.

        Calder, Cook, Thorpe and Slepcev, "Poisson Learning", ICML 2020, eq. 2.3, component by
        component; the degree-weighted mean over each component is zero.

        Args:
            y: One-hot labels of the own rows, zero for unlabeled nodes.

        Raises:
            ValueError: No convergence within `max_iter` products.
        """
        w, scale = self._w, inverse_sqrt(self._w.degrees)
        if self._system is None:
            self._system = graph_system(w, diagonal=torch.ones_like(scale), scale=scale)
        labeled = (y.sum(1) > 0)[:, None]
        mean = counts.labels / counts.labels.sum(1, keepdim=True).clamp(min=1)
        rhs = scale[:, None] * torch.where(labeled, y - mean, 0.0)
        result = self._system.solve(rhs, tol=tol, max_iter=max_iter)
        u = scale[:, None] * result.require_converged().solution
        # The preconditioner brings in constants.
        return without_means(w, self._component, u)

    def shares(
        self, potential: Float64[Tensor, "n C"], counts: ComponentCounts
    ) -> Float64[Tensor, "n C"]:
        """Softmax of the potentials among the classes of the component, zero for all others.

        The scale is the root mean square of the component's potentials: they grow with the number
        of nodes and with the strength of weights, which say nothing about certainty.
        """
        is_there = counts.labels > 0
        squares = torch.where(is_there, potential.square(), 0.0).sum(1, keepdim=True)
        sizes = is_there.sum(1, keepdim=True).to(torch.float64)
        both = sum_by_component(self._w, self._component, torch.cat([squares, sizes], 1))
        scale = (both[:, :1] / both[:, 1:].clamp(min=1)).sqrt()
        scale = torch.where(scale > 0, scale, 1.0)
        logits = torch.where(is_there, potential / scale, -torch.inf)
        reached = counts.reached[:, None]
        return torch.where(reached, torch.softmax(torch.where(reached, logits, 0.0), 1), 0.0)
