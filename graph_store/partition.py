"""Which shard owns which node, and how a list of node ids becomes one request per shard. Pure.

Shards own contiguous ranges of ids in ascending order. Hence ids that are sorted are also grouped
by shard, and columns that are concatenated in shard order are in node order.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Partition:
    """Shard s owns the node ids `bounds[s]` to `bounds[s + 1] - 1`."""

    bounds: tuple[int, ...]

    @classmethod
    def even(cls, num_nodes: int, num_shards: int) -> Partition:
        """Ranges whose sizes differ by at most one.

        Raises:
            ValueError: There are not between 1 and `num_nodes` shards.
        """
        if not 1 <= num_shards <= num_nodes:
            raise ValueError(
                f"num_shards = {num_shards} must lie in 1..num_nodes = {num_nodes}: every shard "
                f"owns at least one node"
            )
        return cls(tuple(num_nodes * s // num_shards for s in range(num_shards + 1)))

    @property
    def num_nodes(self) -> int:
        return self.bounds[-1]

    @property
    def num_shards(self) -> int:
        return len(self.bounds) - 1

    def span(self, shard: int) -> tuple[int, int]:
        """First id of a shard and the one after its last."""
        return self.bounds[shard], self.bounds[shard + 1]

    def owner(self, node_ids: Int64[Tensor, " m"]) -> Int64[Tensor, " m"]:
        """Shard of each id."""
        inner = torch.tensor(self.bounds[1:-1], dtype=torch.int64, device=node_ids.device)
        return torch.searchsorted(inner, node_ids, right=True)

    def counts(self, sorted_ids: Int64[Tensor, " m"]) -> list[int]:
        """How many of the ascending `sorted_ids` each shard owns."""
        bounds = torch.tensor(self.bounds, dtype=torch.int64, device=sorted_ids.device)
        cuts: list[int] = torch.searchsorted(sorted_ids, bounds).tolist()
        return [b - a for a, b in pairwise(cuts)]


@dataclass(frozen=True)
class Route:
    """A list of node ids as one request per shard.

    Attributes:
        node_ids: The distinct ids, ascending; so shard by shard.
        counts: How many of them each shard owns.
        inverse: Position in `node_ids` of each id that was asked for.
    """

    node_ids: Int64[Tensor, " u"]
    counts: list[int]
    inverse: Int64[Tensor, " m"]

    def requests(self) -> list[tuple[int, Tensor]]:
        """(shard, its ids) for the shards that are asked for anything."""
        asked = [(shard, count) for shard, count in enumerate(self.counts) if count]
        parts = torch.split(self.node_ids, [count for _, count in asked])
        return [(shard, part) for (shard, _), part in zip(asked, parts)]

    def restore(self, rows: Shaped[Tensor, "u ..."]) -> Shaped[Tensor, "m ..."]:
        """Rows of the distinct ids -> rows in the order that was asked for."""
        return take_rows(rows, self.inverse)


def route(partition: Partition, node_ids: Int64[Tensor, " m"]) -> Route:
    """Sort and de-duplicate ids and cut them by owner. Ids must lie in 0..N-1."""
    distinct, inverse = distinct_ids(node_ids, partition.num_nodes)
    return Route(distinct, partition.counts(distinct), inverse)


def distinct_ids(
    node_ids: Int64[Tensor, "*shape"], num_nodes: int
) -> tuple[Int64[Tensor, " u"], Int64[Tensor, "*shape"]]:
    """The distinct ids, ascending, and the position of each id among them.

    Negative ids mean "none": they are left out, and their position is -1.

    Cost:
        On the CPU one thread: O(m + N) with a table over all nodes where m is of the order of N,
        else O(m log m).
    """
    if node_ids.device.type != "cpu":
        distinct, position = torch.unique(node_ids, return_inverse=True)
        num_none = (distinct < 0).sum()
        return distinct[distinct >= 0], (position - num_none).clamp_(min=-1)
    ids = node_ids.numpy().reshape(-1)
    by_table = 16 * ids.size >= num_nodes
    found, places = _by_table(ids, num_nodes) if by_table else _by_sorting(ids)
    return torch.from_numpy(found), torch.from_numpy(places).reshape(node_ids.shape)


def take_rows(column: Shaped[Tensor, "n ..."], rows: Int64[Tensor, " m"]) -> Tensor:
    """Some rows of a column.

    On the CPU on one thread: reads are small and many, and waking torch's threads for each takes
    longer (on busy cores by far) than copying the rows.
    """
    if column.device.type != "cpu":
        return column[rows]
    return torch.from_numpy(np.take(column.numpy(), rows.numpy(), axis=0))


def _by_table(ids: NDArray[np.int64], num_nodes: int) -> tuple[NDArray[np.int64], ...]:
    # One place after the last node takes the negative ids.
    seen = np.zeros(num_nodes + 1, dtype=np.bool_)
    places = np.where(ids < 0, num_nodes, ids)
    seen[places] = True
    seen[num_nodes] = False
    found = np.flatnonzero(seen)
    position = np.full(num_nodes + 1, -1, dtype=np.int64)
    position[found] = np.arange(len(found))
    return found, position[places]


def _by_sorting(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    found, position = np.unique(ids, return_inverse=True)
    num_none = int(np.searchsorted(found, 0))
    return found[num_none:], np.maximum(position - num_none, -1)
