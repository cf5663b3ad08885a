"""Labels for all nodes of a graph from the few that are given: every solver behind one call.

What a solver gives is turned into class distributions that can be compared inside one labeling:
non-negative scores are divided by their sum; the potentials of Poisson learning, which have no
scale of their own, go through a softmax at the root mean square of their component; for density
paths, which know labels only, the share of a node and its neighbours that end with its label.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from . import solvers
from .component_poisson import ComponentCounts, component_poisson, count_by_component
from .components import components
from .solvers.onehot import onehot
from .view import Affinity, GraphView

METHODS = ("poisson", "laplace", "local_global", "density_paths")


@dataclass(frozen=True)
class Propagation:
    """How labels move along the graph.

    Attributes:
        method: One of METHODS.
        alpha: `local_global`: share of the neighbours, in (0, 1).
        tau: `laplace`: how fast labels fade with the way; 0: not at all.
        sigma: `density_paths`: longest step, as a distance.
        tol: Relative residual of the solvers.

    Raises:
        ValueError: No such method.
    """

    method: str = "poisson"
    alpha: float = 0.99
    tau: float = 0.0
    sigma: float = float("inf")
    tol: float = 1e-8

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method = {self.method!r}: known are {', '.join(METHODS)}")


@dataclass(frozen=True)
class NodeLabels:
    """What is known of the own nodes.

    Attributes:
        labels: Given labels, and those that were found; -1 where no label arrives.
        probs: Rows sum to 1; one-hot for given labels, zero where no label arrives. Its largest
            entry belongs to the label, and is the confidence.
    """

    labels: Int64[Tensor, " n"]
    probs: Float64[Tensor, "n C"]

    @property
    def confidence(self) -> Float64[Tensor, " n"]:
        return self.probs.amax(1)


class Propagator:
    """One graph, ready to be solved for any labels: its weights and components are found once.

    The weights are self-tuning (GLL). On shards everything here is collective.
    """

    def __init__(self, view: GraphView, propagation: Propagation) -> None:
        self._view, self._how = view, propagation
        self._component: Int64[Tensor, " n"] | None = None
        if propagation.method != "density_paths":
            self._w = view.affinity("self_tuning")
            self._component = components(view, self._w)

    def solve(self, labels: Int64[Tensor, " n"], num_classes: int) -> NodeLabels:
        """Labels for all nodes from the own rows' labels, -1 = unlabeled.

        Raises:
            ValueError: No node of any shard is labeled, labels that do not fit, an option out of
                range, or a solver that does not converge.
        """
        if self._component is None:
            probs = _by_paths(self._view, labels, num_classes, self._how.sigma)
        else:
            probs = self._by_weights(labels, num_classes)
        truth = onehot_rows(labels, num_classes)
        probs = torch.where((labels >= 0)[:, None], truth, probs)
        found = torch.where(probs.amax(1) > 0, probs.argmax(1), -1)
        return NodeLabels(found, probs)

    def _by_weights(self, labels: Int64[Tensor, " n"], num_classes: int) -> Float64[Tensor, "n C"]:
        assert self._component is not None
        y = onehot(labels, self._w, num_classes)
        counts = count_by_component(self._view, self._component, y)
        if self._how.method == "poisson":
            potential = component_poisson(self._w, y, counts, tol=self._how.tol)
            return potential_shares(self._view, potential, counts)
        scores = _scores(self._w, labels, num_classes, self._how).clamp(min=0)
        scores = torch.where(counts.reached[:, None], scores, 0.0)
        return scores / scores.sum(1, keepdim=True).clamp(min=1e-300)


def potential_shares(
    view: GraphView, potential: Float64[Tensor, "n C"], counts: ComponentCounts
) -> Float64[Tensor, "n C"]:
    """Softmax of Poisson potentials among the classes of the component, zero for all others.

    The scale is the root mean square of the component's potentials: they grow with the number of
    nodes and with the strength of weights, which say nothing about certainty.
    """
    is_there = counts.labels > 0
    squares = counts.total(view, torch.where(is_there, potential.square(), 0.0).sum(1))
    size = counts.total(view, is_there.sum(1).to(torch.float64))
    scale = (squares / size.clamp(min=1)).sqrt()
    scale = torch.where(scale > 0, scale, 1.0)
    logits = torch.where(is_there, potential / scale[:, None], -torch.inf)
    shares = torch.softmax(torch.where(counts.reached[:, None], logits, 0.0), 1)
    return torch.where(counts.reached[:, None], shares, 0.0)


def onehot_rows(labels: Int64[Tensor, " n"], num_classes: int) -> Float64[Tensor, "n C"]:
    """One-hot rows, zero for unlabeled nodes; all of them may be."""
    classes = torch.arange(num_classes, device=labels.device)
    return (labels[:, None] == classes).to(torch.float64)


def _scores(
    w: Affinity, labels: Int64[Tensor, " n"], num_classes: int, how: Propagation
) -> Float64[Tensor, "n C"]:
    """Non-negative scores of the solver, up to its error."""
    if how.method == "laplace":
        scores: Tensor = solvers.laplace(
            w, labels, tau=how.tau, tol=how.tol, on_unreached="uniform", num_classes=num_classes
        )
        return scores
    spread: Tensor = solvers.local_global(
        w, labels, alpha=how.alpha, balance_classes=True, tol=how.tol, num_classes=num_classes
    )
    return spread


def _by_paths(
    view: GraphView, labels: Int64[Tensor, " n"], num_classes: int, sigma: float
) -> Float64[Tensor, "n C"]:
    """The label on the density path at the share a, all classes at 1 - a.

    a counts the node and its neighbours that end with the node's label.
    """
    found: Tensor = solvers.density_paths(view, labels, sigma=sigma).labels
    final = torch.where(labels >= 0, labels, found)
    exists = view.neighbor_ids >= 0
    theirs = torch.full_like(view.neighbor_ids, -1)
    theirs[exists] = view.gather(final, view.neighbor_ids[exists])
    agree = 1 + ((theirs == final[:, None]) & exists).sum(1)
    share = (agree / (1 + exists.sum(1))).to(torch.float64)[:, None]
    probs = share * onehot_rows(final, num_classes) + (1 - share) / num_classes
    return torch.where((final >= 0)[:, None], probs, 0.0)
