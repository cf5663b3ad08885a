"""Labels for all nodes of a graph from the few that are given: every solver behind one call.

What a solver gives is turned into class distributions that can be compared inside one labeling:
non-negative scores are divided by their sum; the potentials of Poisson learning, which have no
scale of their own, go through a softmax at the root mean square of their component; for solvers
that know labels only, the share of a node and its neighbours that end with its label.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from . import solvers
from .component_poisson import ComponentCounts, ComponentPoisson
from .solvers.onehot import onehot
from .solvers.reweighted import Reweighting
from .view import Affinity, AffinityKind, GraphView

METHODS = (
    "poisson",
    "poisson_mbo",
    "laplace",
    "p_laplace",
    "wnll",
    "poisson_reweighted",
    "properly_weighted",
    "local_global",
    "random_walk",
    "nearest_labeled",
    "density_paths",
)
_REWEIGHTINGS: dict[str, Reweighting] = {
    "wnll": "wnll",
    "poisson_reweighted": "poisson",
    "properly_weighted": "properly",
}


@dataclass(frozen=True)
class Propagation:
    """How labels move along the graph.

    Attributes:
        method: One of METHODS.
        alpha: `local_global` and `random_walk`: share of the neighbours, in (0, 1); None: 0.99 and
            0.95.
        tau: `laplace` and its kin: how fast labels fade with the way; 0: not at all.
        p: `p_laplace`: at least 2, the larger the less labels are spikes.
        sigma: `density_paths`: longest step, as a distance.
        affinity: Weights of the edges, "self_tuning" (GLL) or, on cosine graphs, "power" (LPDSSL);
            `density_paths` has none.
        gamma: Of "power": exponent on similarities.
        balance_classes: `local_global`: divide each class's labels by their number.
        class_priors: Share of the nodes in each class; the labels are then chosen such that
            classes have these sizes.
        tol: Relative residual of the solvers.

    Raises:
        ValueError: No such method.
    """

    method: str = "poisson"
    alpha: float | None = None
    tau: float = 0.0
    p: float = 3.0
    sigma: float = float("inf")
    class_priors: tuple[float, ...] | None = None
    tol: float = 1e-8
    affinity: AffinityKind = "self_tuning"
    gamma: float = 3.0
    balance_classes: bool = True

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

    On shards everything here is collective.
    """

    def __init__(self, view: GraphView, propagation: Propagation) -> None:
        self._view, self._how = view, propagation
        self._w = view.affinity(propagation.affinity, gamma=propagation.gamma)
        self._components = ComponentPoisson(self._w)

    def solve(self, labels: Int64[Tensor, " n"], num_classes: int) -> NodeLabels:
        """Labels for all nodes from the own rows' labels, -1 = unlabeled.

        Raises:
            ValueError: No node of any shard is labeled, labels that do not fit, an option out of
                range, or a solver that does not converge.
        """
        y = onehot(labels, self._w, num_classes)
        labeled, how = (labels >= 0)[:, None], self._how
        counts = self._components.count(y)
        probs = torch.where(labeled, y, self._shares(labels, y, counts))
        if how.class_priors is not None and how.method != "poisson_mbo":
            sized = with_class_sizes(self._view, probs, labels, how.class_priors)
            probs = torch.where(labeled, y, sized)
        found = torch.where(probs.amax(1) > 0, probs.argmax(1), -1)
        return NodeLabels(found, probs)

    def _shares(
        self, labels: Int64[Tensor, " n"], y: Float64[Tensor, "n C"], counts: ComponentCounts
    ) -> Float64[Tensor, "n C"]:
        """Class distributions; rows of labeled nodes do not matter."""
        how, num_classes = self._how, y.shape[1]
        if how.method == "poisson":
            potential = self._components.solve(y, counts, tol=how.tol)
            return self._components.shares(potential, counts)
        if how.method == "density_paths":
            ends: Tensor = solvers.density_paths(self._view, labels, sigma=how.sigma).labels
            return agreement_shares(self._view, torch.where(labels >= 0, labels, ends), num_classes)
        scores = _scores(self._w, labels, num_classes, how)
        if how.method == "nearest_labeled":
            nearest = torch.where(scores.sum(1) > 0, scores.argmax(1), -1)
            return agreement_shares(self._view, nearest, num_classes)
        # No label of a class comes from another component, whatever a solver makes of sizes.
        is_there = (counts.labels > 0).to(torch.float64)
        scores = scores.clamp(min=0) * is_there
        scores = torch.where(scores.sum(1, keepdim=True) > 0, scores, is_there)
        return scores / scores.sum(1, keepdim=True).clamp(min=1e-300)


def agreement_shares(
    view: GraphView, labels: Int64[Tensor, " n"], num_classes: int
) -> Float64[Tensor, "n C"]:
    """The node's label at the share a and all classes evenly at 1 - a; zero where there is none.

    a counts the node and those of its neighbours that have its label, too.
    """
    exists = view.neighbor_ids >= 0
    theirs = torch.full_like(view.neighbor_ids, -1)
    theirs[exists] = view.gather(labels, view.neighbor_ids[exists])
    agree = 1 + ((theirs == labels[:, None]) & exists).sum(1)
    share = (agree / (1 + exists.sum(1))).to(torch.float64)[:, None]
    classes = torch.arange(num_classes, device=labels.device)
    probs = share * (labels[:, None] == classes) + (1 - share) / num_classes
    return torch.where((labels >= 0)[:, None], probs, 0.0)


def with_class_sizes(
    view: GraphView,
    probs: Float64[Tensor, "n C"],
    labels: Int64[Tensor, " n"],
    class_priors: tuple[float, ...],
) -> Float64[Tensor, "n C"]:
    """Distributions times one factor per class, with which classes have their share of the nodes
    that any label reaches; see `class_prior_projection`."""
    reached = probs.sum(1) > 0
    logs = probs[reached].clamp(min=1e-300).log()
    priors = torch.tensor(class_priors, dtype=torch.float64)
    sized = solvers.class_prior_projection(logs, labels[reached], priors, all_sum=view.all_sum)
    out = torch.zeros_like(probs)
    out[reached] = torch.softmax(sized.scores, 1)
    return out


def _scores(
    w: Affinity, labels: Int64[Tensor, " n"], num_classes: int, how: Propagation
) -> Float64[Tensor, "n C"]:
    """Scores of the solver, the larger the likelier, not negative up to its error."""
    common: dict[str, Any] = {"num_classes": num_classes}
    if how.method == "nearest_labeled":
        scores = solvers.nearest_labeled(w, labels, **common)
    elif how.method == "poisson_mbo":
        given = how.class_priors
        priors = None if given is None else torch.tensor(given, dtype=torch.float64)
        scores = solvers.poisson_mbo(w, labels, priors, tol=how.tol, **common)
    elif how.method == "local_global":
        alpha = 0.99 if how.alpha is None else how.alpha
        scores = solvers.local_global(
            w, labels, alpha=alpha, tol=how.tol, balance_classes=how.balance_classes, **common
        )
    elif how.method == "random_walk":
        alpha = 0.95 if how.alpha is None else how.alpha
        scores = solvers.random_walk(w, labels, alpha, tol=how.tol, **common)
    else:
        common |= {"tau": how.tau, "tol": how.tol, "on_unreached": "uniform"}
        if how.method == "laplace":
            scores = solvers.laplace(w, labels, **common)
        elif how.method == "p_laplace":
            scores = solvers.p_laplace(w, labels, how.p, **common)
        else:
            kind = _REWEIGHTINGS[how.method]
            scores = solvers.reweighted_laplace(w, labels, kind, **common)
    found: Tensor = scores
    return found
