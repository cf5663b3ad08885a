"""What a graph says of labeled nodes whose labels are hidden, for any choice of the hidden ones.

Cross-validation asks the same graph again and again, each time with other labels taken away. For
most solvers all answers follow from few numbers about the m labeled nodes, which one solve gives:

- linear in the labels with a matrix that does not depend on them (`local_global`, `random_walk`,
  `poisson`): the columns of the inverse at the labeled nodes;
- `laplace`, whose matrix loses the rows of labeled nodes: the Schur complement S of the unlabeled
  ones. Eliminating nodes in two steps is eliminating them at once, so hidden nodes h have
  S_hh U_h = -S_hv Y_v, v the others;
- `nearest_labeled`: the distances between labeled nodes; `density_paths`: where their paths meet.

For the others every choice is solved anew. All answers are those of `Propagator.solve`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from torch import Tensor

from .affinity import LocalAffinity
from .labeling import Propagation, Propagator
from .local_view import LocalGraphView
from .path_meetings import PathMeetings, Reach
from .solvers.components import components, sum_by_component, without_means
from .solvers.conjugate_gradient import CgResult
from .solvers.graph_system import GraphSystem, graph_system
from .solvers.local_global import inverse_sqrt

# Where single labels take more, on graphs that all but fall apart, each choice is solved anew.
MAX_ITER = 2_000
# A column per labeled node pays for the coarse space on smaller graphs than a column per class.
MIN_NODES = 500
# Numbers of a block of distances from labeled nodes to all.
_BLOCK_NUMBERS = 1 << 24
Block = Float64[Tensor, "n j"]


@dataclass(frozen=True)
class LabeledNodes:
    """The labels that are given.

    Attributes:
        node_ids: Of the labeled nodes.
        labels: Their classes.
        judged: Places of those that may be hidden, ascending; all others always keep their label.
        num_classes: C.
    """

    node_ids: Int64[Tensor, " m"]
    labels: Int64[Tensor, " m"]
    judged: Int64[Tensor, " j"]
    num_classes: int

    def visible(self, hidden: Bool[Tensor, " m"]) -> Float64[Tensor, "m C"]:
        """One-hot labels, zero rows where they are hidden."""
        y = torch.nn.functional.one_hot(self.labels, self.num_classes).to(torch.float64)
        return torch.where(hidden[:, None], 0.0, y)


@runtime_checkable
class Response(Protocol):
    """Everything that hidden labels make of one graph and one solver."""

    def classes(self, hidden: Bool[Tensor, " m"]) -> Int64[Tensor, " m"]:
        """Class of each hidden node from the labels that are not; -1 where none arrives, and for
        nodes that are not hidden."""
        ...


@dataclass(frozen=True)
class Solution:
    """Attributes:
    response: Of the labeled nodes.
    start: Where to start the solve for similar weights or options; None where nothing is solved.
    iterations: Products with the matrix that the solve took.
    """

    response: Response
    start: Block | None = None
    iterations: int = 0


def respond(
    view: LocalGraphView,
    w: LocalAffinity | None,
    how: Propagation,
    given: LabeledNodes,
    *,
    reach: Reach = "lu",
    start: Block | None = None,
) -> Solution:
    """Solve once for all choices of hidden labels.

    Args:
        w: The weights that `how` asks for; None for "density_paths".
        reach: "density_paths": which labels arrive along paths, see `path_meetings`.
        start: `Solution.start` of the same method with similar weights or options.

    Raises:
        ValueError: An option out of range, or a solver that does not converge.
    """
    if how.class_priors is not None:
        raise ValueError("class_priors are not supported while labels are held out")
    if how.method == "density_paths":
        meetings = PathMeetings.of(view, given.node_ids, how.sigma, reach)
        return Solution(_Paths(given, meetings))
    assert w is not None
    if how.method == "nearest_labeled":
        return Solution(_Nearest(given, _distances(w, given)))
    solve = _SOLVES.get(how.method)
    found = None if solve is None else solve(w, how, given, start)
    if found is None:
        return Solution(_Anew(given, Propagator(view, how), view.num_nodes))
    return found


@dataclass(frozen=True)
class _Linear:
    """Scores are sums over the visible labels.

    Attributes:
        columns: What label v gives to judged node i, as [i, v].
        together: Whether both are in one component, 1 or 0.
        weigh: Makes of visible labels what each of them sends out.
        is_signed: Scores of both signs that have no meaning but their order.
    """

    given: LabeledNodes
    columns: Float64[Tensor, "j m"]
    together: Float64[Tensor, "j m"]
    weigh: Callable[[Float64[Tensor, "m C"]], Float64[Tensor, "m C"]]
    is_signed: bool = False

    def classes(self, hidden: Bool[Tensor, " m"]) -> Int64[Tensor, " m"]:
        y = self.given.visible(hidden)
        scores, is_there = self.columns @ self.weigh(y), self.together @ y > 0
        if not self.is_signed:
            scores = scores.clamp(min=0)
        found = _best(scores, is_there)
        out = torch.full_like(self.given.labels, -1)
        out[self.given.judged] = found
        return torch.where(hidden, out, -1)


@dataclass(frozen=True)
class _Harmonic:
    """Laplace learning: hidden nodes are solved for, visible ones hold.

    Attributes:
        schur: S, its columns those of the judged nodes.
    """

    given: LabeledNodes
    schur: Float64[Tensor, "m j"]
    together: Float64[Tensor, "j m"]

    def classes(self, hidden: Bool[Tensor, " m"]) -> Int64[Tensor, " m"]:
        y, judged = self.given.visible(hidden), self.given.judged
        at = hidden[judged].nonzero()[:, 0]
        rows = judged[at]
        is_there = self.together[at] @ y > 0
        matrix, flow = self.schur[rows][:, at], -self.schur[:, at].T @ y
        # Where no label arrives the equation has no solution, and none is needed.
        alone = ~is_there.any(1)
        matrix[alone], matrix[:, alone] = 0.0, 0.0
        matrix[alone, alone] = 1.0
        out = torch.full_like(self.given.labels, -1)
        out[rows] = _best(torch.linalg.solve(matrix, flow).clamp(min=0), is_there)
        return out


@dataclass(frozen=True)
class _Nearest:
    given: LabeledNodes
    distances: Float64[Tensor, "j m"]

    def classes(self, hidden: Bool[Tensor, " m"]) -> Int64[Tensor, " m"]:
        open_ = torch.where(hidden, torch.inf, self.distances)
        closest = open_.amin(1, keepdim=True)
        # At equal distance the lower class wins.
        offered = torch.where(open_ == closest, self.given.labels, self.given.num_classes)
        found = torch.where(closest[:, 0].isfinite(), offered.amin(1), -1)
        out = torch.full_like(self.given.labels, -1)
        out[self.given.judged] = found
        return torch.where(hidden, out, -1)


@dataclass(frozen=True)
class _Paths:
    given: LabeledNodes
    meetings: PathMeetings

    def classes(self, hidden: Bool[Tensor, " m"]) -> Int64[Tensor, " m"]:
        origin = self.meetings.origins(hidden)
        found = self.given.labels[origin.clamp(min=0)]
        return torch.where(hidden & (origin >= 0), found, -1)


@dataclass(frozen=True)
class _Anew:
    """Every choice of hidden labels is a solve of its own."""

    given: LabeledNodes
    propagator: Propagator
    num_nodes: int

    def classes(self, hidden: Bool[Tensor, " m"]) -> Int64[Tensor, " m"]:
        labels = torch.full((self.num_nodes,), -1)
        labels[self.given.node_ids] = torch.where(hidden, -1, self.given.labels)
        found = self.propagator.solve(labels, self.given.num_classes).labels
        return torch.where(hidden, found[self.given.node_ids], -1)


def _best(scores: Float64[Tensor, "i C"], is_there: Bool[Tensor, "i C"]) -> Int64[Tensor, " i"]:
    """The class of the largest score among those that are there, the lower one at a tie."""
    best = torch.where(is_there, scores, -torch.inf).argmax(1)
    return torch.where(is_there.any(1), best, -1)


def _together(component: Int64[Tensor, " n"], given: LabeledNodes) -> Float64[Tensor, "j m"]:
    own = component[given.node_ids]
    return (own[given.judged][:, None] == own).to(torch.float64)


def _units(w: LocalAffinity, given: LabeledNodes) -> Block:
    """One column per judged node: 1 there, 0 elsewhere."""
    ids = given.node_ids[given.judged]
    out = torch.zeros(w.num_nodes, len(ids), dtype=torch.float64)
    out[ids, torch.arange(len(ids))] = 1.0
    return out


def _solve(
    system: GraphSystem, rhs: Block, how: Propagation, start: Block | None
) -> CgResult | None:
    """The solution; None where it is too far to go."""
    if start is not None and start.shape != rhs.shape:
        start = None
    result = system.solve(rhs, x0=start, tol=how.tol, max_iter=MAX_ITER)
    return result if bool(result.converged.all()) else None


def _local_global(
    w: LocalAffinity, how: Propagation, given: LabeledNodes, start: Block | None
) -> Solution | None:
    """F = (I - alpha S)^-1 Y; see `solvers.local_global`."""
    alpha = _share(how, 0.99)
    scale = alpha**0.5 * inverse_sqrt(w.degrees)
    system = graph_system(w, diagonal=torch.ones_like(scale), scale=scale, min_nodes=MIN_NODES)
    solved = _solve(system, _units(w, given), how, start)
    if solved is None:
        return None

    def weigh(y: Float64[Tensor, "m C"]) -> Float64[Tensor, "m C"]:
        return y / y.sum(0).clamp(min=1) if how.balance_classes else y

    # The inverse is symmetric: its columns at judged nodes are its rows.
    columns, together = solved.solution[given.node_ids].T, _together(components(w), given)
    return Solution(_Linear(given, columns, together, weigh), solved.solution, solved.iterations)


def _random_walk(
    w: LocalAffinity, how: Propagation, given: LabeledNodes, start: Block | None
) -> Solution | None:
    """U = (1 - alpha) (D - alpha W)^-1 D Y; see `solvers.random_walk`."""
    alpha = _share(how, 0.95)
    degrees = torch.where(w.degrees > 0, w.degrees.to(torch.float64), 1.0)
    system = graph_system(
        w, diagonal=degrees, scale=torch.full_like(degrees, alpha**0.5), min_nodes=MIN_NODES
    )
    solved = _solve(system, _units(w, given), how, start)
    if solved is None:
        return None
    sent = (1 - alpha) * degrees[given.node_ids][:, None]
    columns, together = solved.solution[given.node_ids].T, _together(components(w), given)
    response = _Linear(given, columns, together, lambda y: sent * y)
    return Solution(response, solved.solution, solved.iterations)


def _poisson(
    w: LocalAffinity, how: Propagation, given: LabeledNodes, start: Block | None
) -> Solution | None:
    """L u = sum of sources, component by component; see `component_poisson`."""
    component, scale = components(w), inverse_sqrt(w.degrees)
    degrees = w.degrees.to(torch.float64)[:, None]
    units = _units(w, given)
    # A source of its own has no solution; that of labels, whose sum is zero, loses nothing here.
    sums = sum_by_component(w, component, torch.cat([units, degrees], dim=1))
    balanced = units - degrees * sums[:, :-1] / sums[:, -1:].clamp(min=1e-300)
    system = graph_system(w, diagonal=torch.ones_like(scale), scale=scale, min_nodes=MIN_NODES)
    solved = _solve(system, scale[:, None] * balanced, how, start)
    if solved is None:
        return None
    u = without_means(w, component, scale[:, None] * solved.solution)
    own = component[given.node_ids]
    same = (own[:, None] == own).to(torch.float64)

    def weigh(y: Float64[Tensor, "m C"]) -> Float64[Tensor, "m C"]:
        counts = same @ y
        mean = counts / counts.sum(1, keepdim=True).clamp(min=1)
        return torch.where(y.sum(1, keepdim=True) > 0, y - mean, 0.0)

    together = _together(component, given)
    response = _Linear(given, u[given.node_ids].T, together, weigh, is_signed=True)
    return Solution(response, solved.solution, solved.iterations)


def _laplace(
    w: LocalAffinity, how: Propagation, given: LabeledNodes, start: Block | None
) -> Solution | None:
    """S = A_bb - A_bu A_uu^-1 A_ub with A = L + tau I, b all labeled nodes; see `solvers.laplace`.

    Column j is what A makes at b of the function that is 1 at j, 0 at the rest of b and harmonic
    elsewhere.
    """
    if not how.tau >= 0:
        raise ValueError(f"tau must be >= 0, got {how.tau}")
    component = components(w)
    labeled = torch.zeros(w.num_nodes, dtype=torch.bool)
    labeled[given.node_ids] = True
    counts = sum_by_component(w, component, labeled.to(torch.float64)[:, None])[:, 0]
    free = (counts > 0) & ~labeled
    scale, diagonal = free.to(torch.float64), w.degrees.to(torch.float64) + how.tau
    system = graph_system(
        w, diagonal=torch.where(diagonal > 0, diagonal, 1.0), scale=scale, min_nodes=MIN_NODES
    )
    units = _units(w, given)
    solved = _solve(system, scale[:, None] * w.matmul(units), how, start)
    if solved is None:
        return None
    u = units + solved.solution
    schur = (diagonal[:, None] * u - w.matmul(u))[given.node_ids]
    response = _Harmonic(given, schur, _together(component, given))
    return Solution(response, solved.solution, solved.iterations)


def _share(how: Propagation, default: float) -> float:
    alpha = default if how.alpha is None else how.alpha
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie strictly between 0 and 1, got {alpha}")
    return alpha


def _distances(w: LocalAffinity, given: LabeledNodes) -> Float64[Tensor, "j m"]:
    """Between judged and labeled nodes along the edges; lengths as in `nearest_labeled`."""
    from scipy.sparse.csgraph import dijkstra

    lengths = w.to_scipy()
    lengths.data = lengths.data.max(initial=0.0) / lengths.data
    sources, targets = given.node_ids[given.judged].numpy(), given.node_ids.numpy()
    step = max(1, _BLOCK_NUMBERS // w.num_nodes)
    blocks = [
        dijkstra(lengths, indices=sources[start : start + step])[:, targets]
        for start in range(0, len(sources), step)
    ]
    return torch.from_numpy(np.concatenate(blocks))


_SOLVES = {
    "local_global": _local_global,
    "random_walk": _random_walk,
    "poisson": _poisson,
    "laplace": _laplace,
}
