"""What the collectives of one shard carry, counted call by call.

`cost` predicts these numbers; its test and `benchmarks/scale.py` count them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Shaped
from torch import Tensor

from .sharded_view import ShardGroup


@dataclass
class Traffic:
    """What has come to one shard from the others.

    Attributes:
        calls: Collectives.
        messages: One from each other shard in a gather or an exchange, also where it is empty:
            gloo sends those too, except where few are not. One in a broadcast.
        received: Bytes.
    """

    calls: int = 0
    messages: int = 0
    received: int = 0

    def add(self, messages: int, received: int) -> None:
        self.calls += 1
        self.messages += messages
        self.received += received

    def row(self, rows: Tensor, receive: Sequence[int], rank: int, few: bool) -> None:
        """Count an exchange of rows like these; what a shard keeps does not travel."""
        width = rows[:1].numel() if len(rows) else rows.new_empty(1, *rows.shape[1:]).numel()
        others = sum(receive) - receive[rank]
        full = sum(count > 0 for count in receive) - (receive[rank] > 0)
        self.add(full if few else len(receive) - 1, others * width * rows.element_size())


class CountingGroup(ShardGroup):
    """A `ShardGroup` that keeps count in `traffic`; the arguments are the same."""

    def __init__(self, rank: int, size: int, rendezvous: Any, **options: Any) -> None:
        super().__init__(rank, size, rendezvous, **options)
        self.traffic = Traffic()

    def all_gather(self, x: Tensor) -> list[Tensor]:
        self.traffic.add(self.size - 1, (self.size - 1) * x.nbytes)
        return super().all_gather(x)

    def broadcast(self, x: Tensor, root: int) -> Tensor:
        comes = self.rank != root
        self.traffic.add(int(comes), x.nbytes if comes else 0)
        return super().broadcast(x, root)

    def exchange_counts(self, counts: Sequence[int]) -> list[int]:
        self.traffic.add(self.size - 1, 8 * (self.size - 1))
        return super().exchange_counts(counts)

    def exchange(
        self,
        rows: Shaped[Tensor, "m ..."],
        send: Sequence[int],
        receive: Sequence[int],
        *,
        few: bool = False,
    ) -> Tensor:
        self.traffic.row(rows, receive, self.rank, few)
        return super().exchange(rows, send, receive, few=few)
