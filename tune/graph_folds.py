"""Which labels are hidden in turn: stratified folds of the labeled nodes, dealt several times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from ..graph_store.held_out import LabeledNodes


@dataclass(frozen=True)
class Splits:
    """Attributes:
    given: The labeled nodes.
    hidden: One row per fold of every deal: the labels that are hidden, and asked for.
    num_folds: Folds of a deal.
    """

    given: LabeledNodes
    hidden: Bool[Tensor, "s m"]
    num_folds: int


def deal_folds(
    labels: Int64[Tensor, " n"],
    num_classes: int,
    *,
    num_folds: int = 5,
    repeats: int = 10,
    max_judged: int = 500,
    seed: int = 0,
) -> Splits:
    """Deal the labeled nodes into folds, `repeats` times.

    A class's nodes are spread evenly over the folds, in random order, so that no class is ever
    hidden as a whole; the only label of a class is never hidden. Of more than `max_judged` labels a
    stratified sample is hidden in turn, and the others never are.

    Args:
        labels: Class numbers, -1 = unlabeled.

    Raises:
        ValueError: No class has two labels.
    """
    node_ids = (labels >= 0).nonzero()[:, 0]
    own = labels[node_ids]
    numbers = own.numpy()
    counts = np.bincount(numbers, minlength=num_classes)
    if counts.max(initial=0) < 2:
        raise ValueError(
            f"every class has at most one label ({len(numbers)} in all), so none can be hidden to "
            "judge a graph by; give two or more labels of some classes"
        )
    rng = np.random.default_rng(seed)
    share = min(1.0, max_judged / int(counts[counts > 1].sum()))
    parts = []
    for number in np.flatnonzero(counts > 1):
        rows = rng.permutation(np.flatnonzero(numbers == number))
        parts.append(rows[: max(1, round(share * len(rows)))])
    count = min(num_folds, max(2, *(len(part) for part in parts)))
    hidden = torch.zeros(repeats * count, len(numbers), dtype=torch.bool)
    for repeat in range(repeats):
        dealt = 0
        for part in parts:
            rows = rng.permutation(part)
            # Going on where the last class ended keeps the folds of one size.
            fold = (dealt + np.arange(len(rows))) % count
            dealt += len(rows)
            hidden[torch.from_numpy(repeat * count + fold), torch.from_numpy(rows)] = True
    judged = torch.from_numpy(np.sort(np.concatenate(parts)))
    hidden = hidden[hidden.any(1)]
    return Splits(LabeledNodes(node_ids, own, judged, num_classes), hidden, count)
