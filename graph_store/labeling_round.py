"""Labeling as a round of a store: what every shard does, and how good it is on held-out labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from .labeling import Propagation, Propagator
from .view import GraphView, NodeState, PseudoLabels


@dataclass(frozen=True)
class Folds:
    """Labeled nodes that take part in a cross-validation.

    Attributes:
        node_ids: Ascending.
        fold: In which fold each of them is held out, 0..count-1; -1: in none.
    """

    node_ids: Int64[Tensor, " m"]
    fold: Int64[Tensor, " m"]
    count: int

    def of(self, own_ids: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        """The fold of each of these nodes, -1 where it is never held out."""
        takes_part, at = self._find(own_ids)
        return torch.where(takes_part, self.fold[at], -1)

    def visible(
        self, own_ids: Int64[Tensor, " n"], labels: Int64[Tensor, " n"]
    ) -> Int64[Tensor, " n"]:
        """The labels of those nodes that take part; -1 for the others."""
        return torch.where(self._find(own_ids)[0], labels, -1)

    def _find(self, own_ids: Int64[Tensor, " n"]) -> tuple[Bool[Tensor, " n"], Tensor]:
        at = torch.searchsorted(self.node_ids, own_ids).clamp(max=len(self.node_ids) - 1)
        return self.node_ids[at] == own_ids, at


def found_while_held_out(
    propagator: Propagator,
    own_ids: Int64[Tensor, " n"],
    labels: Int64[Tensor, " n"],
    folds: Folds,
    num_classes: int,
    on_fold: Callable[[int], None] = lambda number: None,
) -> Int64[Tensor, " n"]:
    """What the graph says of each held-out node when the labels of its fold are taken away.

    Args:
        own_ids, labels: Of the own nodes.
        on_fold: Called with the number of each fold before it is solved.

    Returns:
        Class numbers; -1 for nodes that are not held out or that no label reaches.
    """
    found = torch.full_like(labels, -1)
    fold, visible = folds.of(own_ids), folds.visible(own_ids, labels)
    for number in range(folds.count):
        on_fold(number)
        held_out = fold == number
        solved = propagator.solve(torch.where(held_out, -1, visible), num_classes)
        found[held_out] = solved.labels[held_out]
    return found


@dataclass(frozen=True)
class LabelingRound:
    """`GraphStore.refresh`'s function that labels all nodes.

    Its `extra` columns: `found` (the label, -1 where none arrives), `confidence`, and `held_out`
    (see `found_while_held_out`).
    """

    propagation: Propagation
    num_classes: int
    folds: Folds | None = None

    def __call__(self, view: GraphView, state: NodeState) -> PseudoLabels:
        propagator = Propagator(view, self.propagation)
        solved = propagator.solve(state.labels, self.num_classes)
        held_out = torch.full_like(state.labels, -1)
        if self.folds is not None:
            held_out = found_while_held_out(
                propagator, view.node_ids, state.labels, self.folds, self.num_classes
            )
        columns = {
            "found": solved.labels,
            "confidence": solved.confidence,
            "held_out": held_out,
        }
        # Rounding may put a share just above one.
        weight = solved.confidence.clamp(0, 1).to(torch.float32)
        return PseudoLabels(solved.probs.to(torch.float32), weight, columns)
