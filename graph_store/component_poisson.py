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

from .solvers.conjugate_gradient import conjugate_gradient
from .solvers.local_global import inverse_sqrt
from .view import Affinity, GraphView


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

    def total(self, view: GraphView, x: Float64[Tensor, "n ..."]) -> Float64[Tensor, "n ..."]:
        """Sum of `x` over the component of each own node. Collective."""
        return _sum_over_component(view, self.component, x)


def count_by_component(
    view: GraphView, component: Int64[Tensor, " n"], y: Float64[Tensor, "n C"]
) -> ComponentCounts:
    """Count one-hot labels (zero rows: unlabeled) in each component. Collective."""
    return ComponentCounts(component, _sum_over_component(view, component, y))


def component_poisson(
    w: Affinity,
    y: Float64[Tensor, "n C"],
    counts: ComponentCounts,
    *,
    tol: float = 1e-12,
    max_iter: int = 10_000,
) -> Float64[Tensor, "n C"]:
    """Solve L u = sum_j (y_j - ybar_K) delta_j, ybar_K the mean label of j's component K.

    Calder, Cook, Thorpe and Slepcev, "Poisson Learning", ICML 2020, eq. 2.3, component by
    component. In v = D^1/2 u the matrix is I - S; the degree-weighted mean over each component
    is zero.

    Args:
        y: One-hot labels of the own rows, zero for unlabeled nodes.

    Raises:
        ValueError: No convergence within `max_iter` products.
    """
    labeled = (y.sum(1) > 0)[:, None]
    mean = counts.labels / counts.labels.sum(1, keepdim=True).clamp(min=1)
    scale = inverse_sqrt(w.degrees)[:, None]

    def system(v: Tensor) -> Tensor:
        return torch.where(scale > 0, v - scale * w.matmul(scale * v), 0.0)

    rhs = scale * torch.where(labeled, y - mean, 0.0)
    result = conjugate_gradient(system, rhs, all_sum=w.all_sum, tol=tol, max_iter=max_iter)
    return scale * result.require_converged().solution


def _sum_over_component(
    view: GraphView, component: Int64[Tensor, " n"], x: Float64[Tensor, "n ..."]
) -> Float64[Tensor, "n ..."]:
    # Summed here first: one row of each component goes to where its node lives.
    here, slot = torch.unique(component, return_inverse=True)
    parts = x.new_zeros(len(here), *x.shape[1:]).index_add_(0, slot, x)
    sums = view.scatter(parts, here, torch.zeros_like(x), "sum")
    return view.gather(sums, component)
