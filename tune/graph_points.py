"""Points of a graph sweep on one snapshot: neighbours shared, solves warm-started, folds scored.

Points are solved in chains: neighbours in the space one after the other, each from the solution of
the one before. What a chain is depends on the points alone, never on who works on it, so that the
scores are the same bits for any number of workers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..graph_store.affinity import LocalAffinity
from ..graph_store.held_out import Block, Solution, respond
from ..graph_store.local_view import LocalGraphView
from .graph_folds import Splits
from .graph_params import KEYS, Params, Solver, solver
from .points import Point

GraphMetric = Literal["accuracy", "balanced_accuracy"]
# A chain is this long at most, and there are this many chains where there are few points.
CHAIN_LENGTH, MIN_CHAINS = 8, 8


@dataclass(frozen=True)
class Snapshot:
    """A frozen graph with its labels.

    Attributes:
        neighbor_ids, similarity, distances: Nearest first; the first k columns are the graph of k
            neighbours, exactly, since ties go by id.
        labels: -1 = unlabeled.
        metric: Of the graph.
    """

    neighbor_ids: Int64[Tensor, "n k"]
    similarity: Float[Tensor, "n k"]
    distances: Float[Tensor, "n k"]
    labels: Int64[Tensor, " n"]
    num_classes: int
    metric: Literal["cosine", "euclidean"]

    def view(self, k: int) -> LocalGraphView:
        """The graph of `k` neighbours, on the same memory.

        Raises:
            ValueError: More neighbours than were searched.
        """
        if not 1 <= k <= self.neighbor_ids.shape[1]:
            raise ValueError(f"k = {k} is not in 1..{self.neighbor_ids.shape[1]}")
        columns = (self.neighbor_ids, self.similarity, self.distances)
        ids, similarity, distances = (column[:, :k] for column in columns)
        return LocalGraphView(ids, similarity, distances, self.metric)


@dataclass(frozen=True)
class Problem:
    """What all points have in common.

    Attributes:
        unreached: What a hidden node counts that no label reaches; 0: as a wrong one.
        tol: Relative residual of the solves.
    """

    snapshot: Snapshot
    splits: Splits
    metric: GraphMetric = "accuracy"
    unreached: float = 0.0
    tol: float = 1e-6


@dataclass
class _Memory:
    """What a chain takes from one point to the next."""

    affinity: tuple[Any, ...] | None = None
    w: LocalAffinity | None = None
    starts: dict[str, Block | None] = field(default_factory=dict)


def chains(points: Sequence[Params]) -> list[list[int]]:
    """Numbers of the points in the order in which they are solved, cut into chains."""
    order = sorted(range(len(points)), key=lambda i: _place(points[i]))
    length = max(1, min(CHAIN_LENGTH, math.ceil(len(points) / MIN_CHAINS)))
    out: list[list[int]] = []
    for number in order:
        same = out and points[out[-1][0]]["method"] == points[number]["method"]
        if same and len(out[-1]) < length:
            out[-1].append(number)
        else:
            out.append([number])
    return out


def solve_chain(problem: Problem, points: Sequence[Params]) -> list[Point]:
    """Score points one after the other; one that fails has a sentence instead of scores."""
    return list(_solve_each(problem, points))


def _solve_each(problem: Problem, points: Sequence[Params]) -> Iterator[Point]:
    memory = _Memory()
    for params in points:
        began = time.perf_counter()
        try:
            scores = _scores(problem, _solve(problem, solver(params, problem.tol), memory))
        except ValueError as error:
            seconds = time.perf_counter() - began
            yield Point(params, (), seconds, "failed", error=" ".join(str(error).split()))
            continue
        yield Point(params, scores, time.perf_counter() - began, "finished")


def _solve(problem: Problem, asked: Solver, memory: _Memory) -> Solution:
    how, view = asked.how, problem.snapshot.view(asked.k)
    if how.method != "density_paths":
        affinity = (asked.k, how.affinity, how.gamma if how.affinity == "power" else None)
        if affinity != memory.affinity:
            memory.w = view.affinity(how.affinity, gamma=how.gamma)
            memory.affinity = affinity
    start, given = memory.starts.get(how.method), problem.splits.given
    found = respond(view, memory.w, how, given, reach=asked.reach, start=start)
    memory.starts[how.method] = found.start
    return found


def _scores(problem: Problem, solution: Solution) -> tuple[float, ...]:
    """One per row of `hidden`."""
    splits, out = problem.splits, []
    for hidden in splits.hidden:
        found = solution.response.classes(hidden)[hidden]
        truth = splits.given.labels[hidden]
        worth = torch.where(found < 0, problem.unreached, (found == truth).to(torch.float64))
        if problem.metric == "balanced_accuracy":
            out.append(_mean_over_classes(worth, truth))
        else:
            out.append(float(worth.mean()))
    return tuple(out)


def _mean_over_classes(worth: Float[Tensor, " h"], truth: Int64[Tensor, " h"]) -> float:
    counts = torch.bincount(truth)
    sums = torch.zeros(len(counts), dtype=worth.dtype).index_add(0, truth, worth)
    return float((sums[counts > 0] / counts[counts > 0]).mean())


def _place(params: Mapping[str, Any]) -> tuple[Any, ...]:
    """Sorts points: same method, weights and graph together, then by the other numbers."""
    return tuple(
        (0, "", 0.0)
        if (value := params.get(key)) is None
        else (1, value, 0.0)
        if isinstance(value, str)
        else (2, "", float(value))
        for key in ("method", "affinity", "gamma", "k", *KEYS)
    )
