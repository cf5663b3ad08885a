"""The label of the nearest labeled node, with distances along the graph's edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from ..view import Affinity
from .arrays import Array, as_labels, like
from .onehot import onehot
from .reductions import largest


def nearest_labeled(w: Affinity, labels: Array, *, num_classes: int | None = None) -> Any:
    """Give every node the class of the labeled node that is nearest along the edges.

    The graph nearest-neighbour classifier, a baseline in Calder et al., "Poisson Learning", ICML
    2020. An edge has the length w_max / w_ij, w_max the largest weight: a step between
    dissimilar nodes costs as much as many between similar ones, and scaling all weights changes
    nothing. (Lengths made of -log w, which for Gaussian weights are distances of the data, give
    clearly worse labels: they leave little difference between strong and weak edges.)

    Args:
        w: Symmetric weights.
        labels: Given labels of the own rows, -1 = unlabeled.
        num_classes: C; by default the largest label plus one. Shards must pass it.

    Returns:
        (n, C) float64, one-hot rows; zero rows for nodes that no path connects to a label. At equal
        distance the lower class wins. Array or tensor as `labels` is.

    Raises:
        ValueError: No labels, or labels that do not fit.

    Cost:
        One `extend` and a pass over the edges for every edge of the shortest path that has most of
        them, once for distances and once for classes.
    """
    given = as_labels(labels).to(w.degrees.device)
    y = onehot(given, w, num_classes)
    num_classes = y.shape[1]
    labeled = given >= 0
    distances, lengths = labeled_distances(w, labeled)
    ids = torch.where(labeled, given, num_classes).to(torch.float64)
    through = w.extend(distances)[w.csr.cols] + lengths
    # Edges that end a shortest path; those of infinite distance lead nowhere.
    tight = through.isfinite() & (through == distances.repeat_interleave(w.csr.offsets.diff()))

    def relax(ids: Tensor) -> Tensor:
        offered = torch.where(tight, w.extend(ids)[w.csr.cols], float(num_classes))
        return torch.where(labeled, ids, torch.minimum(ids, _row_minimum(w, offered)))

    ids = _until_settled(w, ids, relax)
    # The column beyond the classes takes the nodes without one.
    rows = torch.nn.functional.one_hot(ids.to(torch.int64), num_classes + 1)
    return like(rows[:, :num_classes].to(torch.float64), labels)


def labeled_distances(
    w: Affinity, labeled: Bool[Tensor, " n"]
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " nnz"]]:
    """Length of the shortest path to a labeled node (inf: none), and the lengths of the edges.

    Bellman and Ford, all edges at once: distances are the same bits on any number of shards.
    """
    weights = w.csr.vals.to(torch.float64)
    # A weight that has underflowed to zero is no edge: its length is infinite.
    lengths = largest(weights, w.all_max) / weights
    start = torch.where(labeled, 0.0, torch.inf).to(torch.float64)

    def relax(distances: Tensor) -> Tensor:
        through = w.extend(distances)[w.csr.cols] + lengths
        return torch.minimum(distances, _row_minimum(w, through))

    return _until_settled(w, start, relax), lengths


def _row_minimum(w: Affinity, values: Float64[Tensor, " nnz"]) -> Float64[Tensor, " n"]:
    return torch.segment_reduce(values, "min", offsets=w.csr.offsets, initial=torch.inf)


def _until_settled(
    w: Affinity, column: Float64[Tensor, " n"], relax: Callable[[Tensor], Tensor]
) -> Float64[Tensor, " n"]:
    """Repeat until no shard's rows change; values only fall, so this ends."""
    while True:
        relaxed = relax(column)
        if int(w.all_sum((relaxed != column).sum())) == 0:
            return column
        column = relaxed
