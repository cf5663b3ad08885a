"""A batch of nodes to label: high scores that are not next to each other, even over the classes.

Everything comes back as a column of the own rows, so that shards see what one process would see.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from ..view import GraphView
from .acquisition import local_max, neighbors_of

_NOTHING = torch.iinfo(torch.int64).min
_PEAK, _APART, _REST = 0, 1, 2


def select(
    graph: GraphView,
    score: Float[Tensor, " n"],
    count: int,
    *,
    among: Bool[Tensor, " n"],
    apart: bool = True,
    classes: Int64[Tensor, " n"] | None = None,
    num_classes: int = 1,
) -> Int64[Tensor, " n"]:
    """Choose `count` nodes with high scores.

    With `apart`, LocalMax goes first: nodes whose score is the largest among their neighbours;
    then nodes in the order of their scores that are not next to a chosen one, until there is none
    left; then the others by score. Of equal scores the lower id goes first.

    Args:
        score: Of the own rows.
        count: How many, over all shards.
        among: Nodes that may be chosen: unlabeled and present.
        apart: False: by score alone.
        classes: With it, classes take turns: each gives its best node, then each its second best
            and so on. Predicted class of each own row, 0..num_classes-1.

    Returns:
        The place of each own row in the choice, 0..count-1, and -1 for those not chosen.

    Raises:
        ValueError: More nodes are asked for than there are, scores that are not finite, or classes
            that do not fit.

    Cost:
        Three reductions of C numbers per turn; with `apart` a few `gather` and `scatter` over the
        edges, more where scores rise along long paths.
    """
    check_count(graph, count, among)
    if not bool(torch.isfinite(score[among]).all()):
        raise ValueError("scores of nodes that may be chosen must be finite")
    group = torch.zeros_like(graph.node_ids) if classes is None else classes
    size = 1 if classes is None else num_classes
    if bool(((group < 0) | (group >= size))[among].any()):
        raise ValueError(f"classes must be in 0..{size - 1} where nodes may be chosen")
    enough = count if classes is None else graph.num_nodes
    tier = _tiers(graph, score, among, enough) if apart else torch.zeros_like(graph.node_ids)
    return _Lists(graph, score.double(), tier, group, among, size).take(count)


def check_count(graph: GraphView, count: int, among: Bool[Tensor, " n"]) -> None:
    """Raises ValueError where fewer than `count` nodes may be chosen, or none is asked for."""
    available = int(graph.all_sum(among.sum()))
    if count < 1:
        raise ValueError(f"count must be at least 1, got {count}")
    if count > available:
        raise ValueError(f"count = {count}, but only {available} nodes are unlabeled; lower count")


def _tiers(
    graph: GraphView, score: Float[Tensor, " n"], among: Bool[Tensor, " n"], enough: int
) -> Int64[Tensor, " n"]:
    """Peaks, nodes apart from each other and from the peaks, and the rest.

    Taking the peaks out with their neighbours and looking for peaks again finds the nodes that
    going through all of them by score would find, one by one.
    """
    tier = torch.full_like(graph.node_ids, _REST)
    found, free = local_max(graph, score, among), among
    tier[found] = _PEAK
    if int(graph.all_sum(found.sum())) >= enough:
        return tier
    while int(graph.all_sum(found.sum())):
        free = free & ~found & ~neighbors_of(graph, found)
        found = local_max(graph, score, free)
        tier[found] = _APART
    return tier


class _Lists:
    """The own candidates of every class, best first, from which turns are taken."""

    def __init__(
        self,
        graph: GraphView,
        score: Float64[Tensor, " n"],
        tier: Int64[Tensor, " n"],
        group: Int64[Tensor, " n"],
        among: Bool[Tensor, " n"],
        num_groups: int,
    ) -> None:
        order = among.nonzero()[:, 0]
        # Stable sorts, the last key first; own rows ascend by id, which settles the rest.
        order = order[torch.argsort(score[order], descending=True, stable=True)]
        order = order[torch.argsort(tier[order], stable=True)]
        order = order[torch.argsort(group[order], stable=True)]
        self._graph, self._score, self._tier, self._order = graph, score, tier, order
        sizes = torch.bincount(group[order], minlength=num_groups)
        self._end = sizes.cumsum(0)
        self._next = self._end - sizes

    def take(self, count: int) -> Int64[Tensor, " n"]:
        """Places of the own rows after `count` nodes have been taken, in turns."""
        place = torch.full_like(self._graph.node_ids, -1)
        taken = 0
        while taken < count:
            row, ids = self._heads()
            ids = ids[: count - taken]
            # Which of the turn's nodes are own ones, and where they come in.
            own = (row >= 0).nonzero()[:, 0]
            mine = self._graph.node_ids[row[own]][:, None] == ids
            hit, at = mine.nonzero(as_tuple=True)
            place[row[own[hit]]] = taken + at
            self._next[own[hit]] += 1
            taken += len(ids)
        return place

    def _heads(self) -> tuple[Int64[Tensor, " g"], Int64[Tensor, " t"]]:
        """Own best row of each class (-1: none), and the ids of all shards' best, in order."""
        graph, has = self._graph, self._next < self._end
        row = torch.full_like(self._next, -1)
        tier, score = torch.full_like(row, _REST + 1), torch.full_like(row, 0, dtype=torch.float64)
        node_id = torch.full_like(row, 0)
        own = row[has] = self._order[self._next[has]]
        tier[has], score[has] = self._tier[own], self._score[own]
        node_id[has] = graph.node_ids[own]
        best_tier = -graph.all_max(-tier)
        is_best = has & (tier == best_tier)
        best_score = graph.all_max(torch.where(is_best, score, -torch.inf))
        is_best &= score == best_score
        best_id = -graph.all_max(torch.where(is_best, -node_id, _NOTHING))
        order = torch.argsort(best_id, stable=True)
        order = order[torch.argsort(best_score[order], descending=True, stable=True)]
        order = order[torch.argsort(best_tier[order], stable=True)]
        return row, best_id[order[best_tier[order] <= _REST]]
