"""The tree of neighbours below some nodes, level by level. Pure: rows come from a function."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jaxtyping import Int64
from torch import Tensor

from .partition import distinct_ids
from .view import Hop, Neighborhood

Fetch = Callable[[Tensor, tuple[str, ...]], Mapping[str, Tensor]]
"""`fetch(node_ids, columns)`: rows of the named columns for distinct, ascending ids."""


def build_neighborhood(
    neighbor_ids: Int64[Tensor, "b k"], hops: int, num_nodes: int, fetch: Fetch
) -> Neighborhood:
    """Follow neighbour lists `hops` levels down; each node is fetched once per level.

    Args:
        neighbor_ids: Lists of the nodes asked for (level 0); -1 where there is none.

    Cost:
        One `fetch` per level: the rows of a level bring the lists that lead to the next one.
    """
    levels = []
    for level in range(hops):
        node_ids, index = distinct_ids(neighbor_ids, num_nodes)
        is_last = level == hops - 1
        columns = ("features", "density") if is_last else ("features", "density", "neighbor_ids")
        rows = fetch(node_ids, columns)
        levels.append(Hop(index, node_ids, rows["features"], rows["density"]))
        if not is_last:
            neighbor_ids = rows["neighbor_ids"]
    return Neighborhood(tuple(levels))
