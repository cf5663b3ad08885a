"""Refinement of an approximate kNN graph over shards: the lists of one process, bit for bit.

Everything that decides is in `refine`; here are the messages.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from .exchange import Found
from .kernels.knn import merge_topk
from .partition import Partition
from .sharded_view import ShardGroup, plan_fetch


class ShardExchange:
    """`Exchange` among the shards of a group."""

    def __init__(self, group: ShardGroup, partition: Partition) -> None:
        self.num_nodes = partition.num_nodes
        self.start = partition.bounds[group.rank]
        self._group, self._partition = group, partition

    def fetch(
        self, columns: Sequence[Shaped[Tensor, "n ..."]], ids: Int64[Tensor, " m"]
    ) -> tuple[list[Tensor], Int64[Tensor, " m"]]:
        """Two exchanges, and one per column; a row crosses once however often it is asked."""
        plan = plan_fetch(self._group, self._partition, ids)
        return [plan.fetch(column) for column in columns], plan.route.inverse

    def fetch_filled(
        self,
        column: Shaped[Tensor, "n ..."],
        ids: Int64[Tensor, "b c"],
        counts: Int64[Tensor, " b"],
    ) -> tuple[Tensor, Int64[Tensor, "b c"]]:
        is_filled = torch.arange(ids.shape[1]) < counts[:, None]
        (table,), found = self.fetch([column], ids[is_filled])
        places = torch.empty_like(ids)
        places[is_filled] = found
        return table, places

    def send(self, rows: Int64[Tensor, "m c"], ids: Int64[Tensor, " m"]) -> Int64[Tensor, "s c"]:
        owner = self._partition.owner(ids)
        counts = owner.bincount(minlength=self._group.size).tolist()
        receive = self._group.exchange_counts(counts)
        return self._group.exchange(rows[owner.argsort(stable=True)], counts, receive)

    def whole(self, column: Int64[Tensor, " n"]) -> Int64[Tensor, " N"]:
        counts = [b - a for a, b in map(self._partition.span, range(self._group.size))]
        padded = column.new_zeros(max(counts))
        padded[: column.shape[0]] = column
        parts = self._group.all_gather(padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts)])

    def merge(self, found: Found, k: int) -> Found:
        ids, distances = (self._group.all_gather(part) for part in found)
        return merge_topk(ids, distances, k)

    def total(self, count: int) -> int:
        return sum(self._counts(count))

    def most(self, count: int) -> int:
        return max(self._counts(count))

    def _counts(self, count: int) -> list[int]:
        return [int(part) for part in self._group.all_gather(torch.tensor(count))]
