"""Which nodes to label next: how uncertain a node is, and where uncertainty peaks on the graph.

Scores of class distributions U and LocalMax as in GLL (active learning of its base set), after
Chapman et al., "Novel Batch Active Learning Approach and Its Application to Synthetic Aperture
Radar Datasets", 2023: the nodes whose score is the largest among their neighbours on the graph.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ..view import GraphView

UncertaintyKind = Literal["entropy", "l2", "margin"]


def uncertainty(probs: Float[Tensor, "n C"], kind: UncertaintyKind) -> Float[Tensor, " n"]:
    """How little is known about a node's class; higher = less certain.

    "entropy": -sum_c U_c log U_c of the row divided by its sum; "l2": 1 - |U|_2; "margin":
    1 - (p1 - p2), the two largest entries. Rows of zeros, which nothing reached, are as uncertain
    as can be: log C, 1 and 1.

    Rows need not sum to 1. With tau > 0 they decay away from the labels, and "l2" and "margin"
    then grow with the distance to them; entropy sees the shares alone.

    Args:
        probs: Class distributions of the own rows, not negative.

    Raises:
        ValueError: No such kind, no class, or values that are negative or not finite.
    """
    if kind not in get_args(UncertaintyKind):
        raise ValueError(f"kind = {kind!r}: known are {', '.join(get_args(UncertaintyKind))}")
    if probs.shape[1] == 0:
        raise ValueError("probs have no column; give one column per class")
    if not bool((torch.isfinite(probs) & (probs >= 0)).all()):
        raise ValueError("probs are negative, NaN or infinite; give class distributions")
    if kind == "l2":
        norm: Tensor = torch.linalg.vector_norm(probs, dim=1)
        return 1 - norm
    if kind == "margin":
        top = probs.topk(min(2, probs.shape[1]), dim=1).values
        return 1 - (top[:, 0] - top[:, 1] if probs.shape[1] > 1 else top[:, 0])
    total = probs.sum(1, keepdim=True)
    shares = torch.where(total > 0, probs / total.where(total > 0, 1), 1 / probs.shape[1])
    entropy: Tensor = torch.special.entr(shares).sum(1)
    return entropy


def local_max(
    graph: GraphView, score: Float[Tensor, " n"], among: Bool[Tensor, " n"] | None = None
) -> Bool[Tensor, " n"]:
    """Nodes whose score is larger than that of all their neighbours.

    Neighbours are those that a node lists and those that list it. Of equal scores the lower id
    counts as larger, so that two nodes found are never neighbours. Nodes without edges are found.

    Args:
        score: Of the own rows.
        among: Nodes that take part; the others are neither found nor in anybody's way.

    Raises:
        ValueError: A score is NaN, or there is not one per own row.

    Cost:
        One or two `gather` and one `scatter` with an entry per edge.
    """
    if score.shape != graph.node_ids.shape:
        raise ValueError(f"got {tuple(score.shape)} scores for {len(graph.node_ids)} nodes")
    if bool(score.isnan().any()):
        raise ValueError(f"score of node {int(graph.node_ids[score.isnan()][0])} is NaN")
    rows, theirs = edges_of(graph)
    if among is not None:
        both = among[rows] & graph.gather(among, theirs)
        rows, theirs = rows[both], theirs[both]
    mine, other = score[rows], graph.gather(score, theirs)
    wins = (mine > other) | ((mine == other) & (graph.node_ids[rows] < theirs))
    beaten = torch.zeros_like(graph.node_ids)
    beaten[rows[~wins]] = 1
    # Who is listed does not know by whom: the edge's other end tells it that it has lost.
    unbeaten = graph.scatter(wins.to(torch.int64), theirs, beaten, "amax") == 0
    return unbeaten if among is None else unbeaten & among


def neighbors_of(graph: GraphView, nodes: Bool[Tensor, " n"]) -> Bool[Tensor, " n"]:
    """Nodes that list one of `nodes` or are listed by one. A `gather` and a `scatter`."""
    rows, theirs = edges_of(graph)
    touched = torch.zeros_like(graph.node_ids)
    touched[rows[graph.gather(nodes, theirs)]] = 1
    return graph.scatter(nodes[rows].to(torch.int64), theirs, touched, "amax") == 1


def edges_of(graph: GraphView) -> tuple[Int64[Tensor, " e"], Int64[Tensor, " e"]]:
    """Own row and neighbour's id of the edges that exist."""
    rows, slots = (graph.neighbor_ids >= 0).nonzero(as_tuple=True)
    return rows, graph.neighbor_ids[rows, slots]
