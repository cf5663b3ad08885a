"""One process or a group of shards, seen the same: what an update of the graph says to the others.

All methods are collective.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from .partition import Partition
from .sharded_view import ShardGroup, plan_fetch, sum_over_shards

# Rows that are sent at once.
BLOCK = 1 << 17


@dataclass(frozen=True)
class Peers:
    """The shards of a partition; `group` is None where there is only one.

    Attributes:
        rank: Number of this shard.
        start: First node id of this shard.
    """

    partition: Partition
    rank: int = 0
    group: ShardGroup | None = None

    @property
    def start(self) -> int:
        return self.partition.bounds[self.rank]

    @property
    def size(self) -> int:
        return self.partition.num_shards

    def all_sum(self, x: Tensor) -> Tensor:
        """Sum over the shards, the same bits on each."""
        return x if self.group is None else sum_over_shards(self.group, x)

    def all_max(self, x: Tensor) -> Tensor:
        """Elementwise maximum over the shards."""
        return x if self.group is None else torch.stack(self.group.all_gather(x)).amax(0)

    def total(self, count: int) -> int:
        return int(self.all_sum(torch.tensor(count)))

    def any(self, flag: bool) -> bool:
        return bool(self.total(int(flag)))

    def largest(self, value: float) -> float:
        return float(self.all_max(torch.tensor(value, dtype=torch.float64)))

    def counts(self, count: int) -> list[int]:
        """`count` of every shard, in shard order."""
        if self.group is None:
            return [count]
        return [int(c) for c in torch.cat(self.group.all_gather(torch.tensor([count])))]

    def concat(self, x: Shaped[Tensor, "n ..."]) -> Tensor:
        """Rows of all shards, in shard order; each may have any number of them."""
        if self.group is None:
            return x
        parts = [
            self.group.broadcast(x if r == self.rank else x.new_empty(c, *x.shape[1:]), r)
            for r, c in enumerate(self.counts(x.shape[0]))
        ]
        return torch.cat(parts)

    def blocks(
        self, *columns: Shaped[Tensor, "m ..."], block: int = BLOCK, first: int = BLOCK
    ) -> Iterator[tuple[int, slice, tuple[Tensor, ...]]]:
        """Every shard's rows of some columns, block by block: (shard, its rows, columns).

        The first block has about `first` rows at most, each further one at most twice as many.
        """
        size = min(first, block)
        for root, count in enumerate(self.counts(columns[0].shape[0])):
            start = 0
            while start < count:
                # A small rest goes along: every block is worked off against all rows.
                part = slice(start, count if count - start < 3 * size // 2 else start + size)
                yield root, part, tuple(self._send(column, root, part) for column in columns)
                start, size = part.stop, min(2 * size, block)

    def _send(self, column: Tensor, root: int, part: slice) -> Tensor:
        if self.group is None:
            return column[part]
        is_root = root == self.rank
        shape = (part.stop - part.start, *column.shape[1:])
        return self.group.broadcast(column[part] if is_root else column.new_empty(shape), root)

    def collect(self, x: Shaped[Tensor, "m ..."], root: int) -> list[Tensor]:
        """`x` of every shard at `root`, in shard order; nothing elsewhere. Same shapes."""
        if self.group is None:
            return [x]
        is_root = root == self.rank
        send = [x.shape[0] if r == root else 0 for r in range(self.size)]
        receive = [x.shape[0] if is_root else 0 for _ in range(self.size)]
        rows = self.group.exchange(x, send, receive, few=True)
        return list(torch.split(rows, x.shape[0])) if is_root and x.shape[0] else []

    def members(
        self,
        ids: Shaped[Tensor, "*shape"],
        *columns: Shaped[Tensor, "n ..."],
        owner: int | None = None,
    ) -> tuple[Shaped[Tensor, "*shape"], tuple[Tensor, ...]]:
        """Rows of some nodes, wherever they live: each id's place, and the columns to look in.

        Args:
            ids: -1 is nobody; its place means nothing.
            owner: The shard where the nodes live that any shard asks for, if it is one.
        """
        if self.group is None:
            return ids, columns
        plan = plan_fetch(self.group, self.partition, ids.reshape(-1).to(torch.int64), owner)
        places = plan.route.inverse.reshape(ids.shape).to(ids.dtype)
        return places, tuple(plan.fetch(column) for column in columns)

    def fetch(
        self, ids: Int64[Tensor, " m"], column: Shaped[Tensor, "n ..."]
    ) -> Shaped[Tensor, "m ..."]:
        """Rows of some nodes, in the order of their ids."""
        places, (rows,) = self.members(ids, column)
        return rows[places]
