"""Density paths: every node points to its nearest denser neighbour, and labels run along the paths.

DAG: Li et al., "Density-Aware Graph for Deep Semi-Supervised Visual Recognition", CVPR 2020,
eq. 8 and algorithm 1. Every node has at most one parent, so the paths form a forest and labels run
along them by pointer jumping, in about log2(longest path) rounds of `gather` and `scatter`.

Nodes are ordered by (float32 density, lower id first); the order is packed into one integer, the
same on any number of shards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..kernels.density import density as mean_similarity
from ..view import GraphView
from .arrays import Array, as_labels, as_tensor, like

NOTHING = torch.iinfo(torch.int64).min
MAX_NODES = 2**31


@runtime_checkable
class HasView(Protocol):
    """A graph that offers a view of itself, as `KnnGraph` does."""

    def as_view(self) -> GraphView: ...


@dataclass(frozen=True)
class DensityPaths:
    """Own rows; arrays or tensors as the labels were.

    Attributes:
        labels: Given labels, then those of LP-L, then those of LP-LU; -1 for nodes without.
        source: 0 given, 1 from a labeled node below (LP-L), 2 from one further up the path
            (LP-LU), 3 from nowhere.
        origin: Node whose given label this is; -1 for nodes without.
        parent: Next node on the path; -1 where the path ends.
        root: Last node of the path.
        path_length: Number of nodes on the path, this one and the root included.
        density: As used.
    """

    labels: Any
    source: Any
    origin: Any
    parent: Any
    root: Any
    path_length: Any
    density: Any


def density_paths(
    graph: GraphView | HasView,
    labels: Array,
    *,
    sigma: float,
    density: Array | None = None,
) -> DensityPaths:
    """Label nodes by the labeled nodes on their density paths (DPLP).

    The parent of v is the nearest w among its neighbours with a higher density, if |v - w| is at
    most `sigma` (eq. 8). LP-L gives every labeled node's label to the unlabeled nodes on its path,
    those of the densest labeled node first; LP-LU gives the remaining unlabeled nodes the label of
    the densest labeled node on their own path (algorithm 1).

    Departure: the denser node is looked for among the k neighbours, not among all nodes.

    Args:
        graph: A view, or a `KnnGraph`.
        labels: Given labels of the own rows, -1 = unlabeled.
        sigma: Longest step of a path, in the graph's distance (0 to 2 for cosine graphs).
        density: Of the own rows, compared in float32; by default the mean similarity to the
            neighbours (eq. 3).

    Raises:
        ValueError: sigma is negative or NaN, more than 2^31 nodes, or shapes that do not fit.

    Cost:
        Per round two `gather` of n integers and one `scatter`; about log2(longest path) rounds.
    """
    view = graph.as_view() if isinstance(graph, HasView) else graph
    given = as_labels(labels).to(view.neighbor_ids.device)
    if not sigma >= 0:
        raise ValueError(f"sigma must be >= 0, got {sigma}")
    if given.shape != view.node_ids.shape:
        raise ValueError(f"got {given.shape[0]} labels for {view.node_ids.shape[0]} nodes")
    if density is None:
        rho = mean_similarity(view.similarity, view.neighbor_ids)
    else:
        rho = as_tensor(density).to(view.neighbor_ids.device, torch.float32)
    order = density_order(rho, view.node_ids)
    parent = find_parents(view, order, sigma)
    key = torch.where(given >= 0, order, NOTHING)
    below, above, root, path_length = _run_along(view, parent, key)

    winner = torch.where(below > NOTHING, below, above)
    winner = torch.where(given >= 0, order, winner)
    found = winner > NOTHING
    origin = torch.where(found, _node_of(winner), -1)
    spread = torch.full_like(given, -1)
    spread[found] = view.gather(given, origin[found])
    source = torch.where(found, torch.where(below > NOTHING, 1, 2), 3)
    source = torch.where(given >= 0, 0, source)
    columns = (spread, source, origin, parent, root, path_length, rho)
    return DensityPaths(*(like(column, labels) for column in columns))


def density_order(
    density: Float[Tensor, " n"], node_ids: Int64[Tensor, " n"]
) -> Int64[Tensor, " n"]:
    """One integer per node, larger for denser nodes and, at equal density, for lower ids.

    The upper 32 bits hold the float32 density as an integer of the same order, the lower 31 the
    complement of the id.

    Raises:
        ValueError: NaN densities, or ids from 2^31.
    """
    if bool(density.isnan().any()):
        raise ValueError(f"density of node {int(node_ids[density.isnan()][0])} is NaN")
    if node_ids.numel() and int(node_ids.max()) >= MAX_NODES:
        raise ValueError(f"node ids must be below 2^31, got {int(node_ids.max())}")
    # + 0 turns -0.0 into 0.0, which is equal to it but has other bits.
    bits = (density.to(torch.float32) + 0).contiguous().view(torch.int32).to(torch.int64)
    # Negative floats descend as their magnitude bits ascend.
    ascending = torch.where(bits >= 0, bits, -(bits & 0x7FFFFFFF))
    return ascending * 2**32 + (MAX_NODES - 1 - node_ids)


def find_parents(view: GraphView, order: Int64[Tensor, " n"], sigma: float) -> Int64[Tensor, " n"]:
    """Nearest denser neighbour within `sigma`, or -1. Neighbours are listed nearest first."""
    exists = view.neighbor_ids >= 0
    theirs = torch.full_like(view.neighbor_ids, NOTHING)
    theirs[exists] = view.gather(order, view.neighbor_ids[exists])
    denser = theirs > order[:, None]
    first = denser.to(torch.int8).argmax(1, keepdim=True)
    is_near = denser.any(1) & (view.distances.gather(1, first)[:, 0] <= sigma)
    return torch.where(is_near, view.neighbor_ids.gather(1, first)[:, 0], -1)


def _run_along(
    view: GraphView, parent: Int64[Tensor, " n"], key: Int64[Tensor, " n"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pointer jumping over the forest.

    After round t, `jump` is the 2^t-th node up the path (-1 beyond the root), `below` the largest
    key among the descendants less than 2^t steps down, `above` that among the ancestors less than
    2^t steps up (both with the node itself).
    """
    jump, below, above = parent, key, key
    root, length = view.node_ids, torch.ones_like(parent)
    while int(view.all_sum((jump >= 0).sum())):
        going = (jump >= 0).nonzero()[:, 0]
        target = jump[going]
        reached = view.gather(torch.stack([above, root, length, jump], 1), target)
        below = view.scatter(below[going], target, below, "amax")
        above, root, length, jump = (x.clone() for x in (above, root, length, jump))
        above[going] = torch.maximum(above[going], reached[:, 0])
        root[going] = reached[:, 1]
        length[going] += reached[:, 2]
        jump[going] = reached[:, 3]
    return below, above, root, length


def _node_of(order: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """Inverse of `density_order`: the node's id."""
    return MAX_NODES - 1 - (order & (MAX_NODES - 1))
