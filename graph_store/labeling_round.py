"""Labeling as a round of a store: what every shard does, and how good it is on held-out labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from .labeling import Propagation, Propagator
from .view import GraphView, NodeState, PseudoLabels


@dataclass(frozen=True)
class Folds:
    """Labeled nodes that are held out once each.

    Attributes:
        node_ids: Ascending.
        fold: In which fold each of them is held out, 0..count-1.
    """

    node_ids: Int64[Tensor, " m"]
    fold: Int64[Tensor, " m"]
    count: int

    def of(self, own_ids: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
        """The fold of each of these nodes, -1 where it is never held out."""
        out = torch.full_like(own_ids, -1)
        if len(self.node_ids):
            at = torch.searchsorted(self.node_ids, own_ids).clamp(max=len(self.node_ids) - 1)
            is_in = self.node_ids[at] == own_ids
            out[is_in] = self.fold[at[is_in]]
        return out


def found_while_held_out(
    propagator: Propagator,
    labels: Int64[Tensor, " n"],
    fold: Int64[Tensor, " n"],
    num_folds: int,
    num_classes: int,
    on_fold: Callable[[int], None] = lambda number: None,
) -> Int64[Tensor, " n"]:
    """What the graph says of each held-out node when the labels of its fold are taken away.

    Args:
        fold: Of the own nodes, -1 = not held out.
        on_fold: Called with the number of folds that are done.

    Returns:
        Class numbers; -1 for nodes that are not held out or that no label reaches.
    """
    found = torch.full_like(labels, -1)
    for number in range(num_folds):
        held_out = fold == number
        solved = propagator.solve(torch.where(held_out, -1, labels), num_classes)
        found[held_out] = solved.labels[held_out]
        on_fold(number + 1)
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
            fold = self.folds.of(view.node_ids)
            held_out = found_while_held_out(
                propagator, state.labels, fold, self.folds.count, self.num_classes
            )
        columns = {
            "found": solved.labels,
            "confidence": solved.confidence,
            "held_out": held_out,
        }
        # Rounding may put a share just above one.
        weight = solved.confidence.clamp(0, 1).to(torch.float32)
        return PseudoLabels(solved.probs.to(torch.float32), weight, columns)
