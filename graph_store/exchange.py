"""What refinement asks of the other shards; in one process it is plain indexing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from jaxtyping import Float64, Int64, Shaped
from torch import Tensor

Found = tuple[Int64[Tensor, "m k"], Float64[Tensor, "m k"]]


@runtime_checkable
class Exchange(Protocol):
    """Columns of which the rows `start` to `start` + n - 1 live here. All methods are collective.

    Attributes:
        num_nodes: N, over all shards.
        start: First node of this shard.
    """

    num_nodes: int
    start: int

    def fetch(
        self, columns: Sequence[Shaped[Tensor, "n ..."]], ids: Int64[Tensor, " m"]
    ) -> tuple[list[Tensor], Int64[Tensor, " m"]]:
        """Tables of rows of the columns, and where in them row `ids[j]` is; -1 for id -1."""
        ...

    def fetch_filled(
        self,
        column: Shaped[Tensor, "n ..."],
        ids: Int64[Tensor, "b c"],
        counts: Int64[Tensor, " b"],
    ) -> tuple[Tensor, Int64[Tensor, "b c"]]:
        """`fetch` of the first `counts` ids of each row; what follows them is left undefined."""
        ...

    def send(self, rows: Int64[Tensor, "m c"], ids: Int64[Tensor, " m"]) -> Int64[Tensor, "s c"]:
        """Rows that any shard sends to the owner of a node here, in any order."""
        ...

    def whole(self, column: Int64[Tensor, " n"]) -> Int64[Tensor, " N"]:
        """The column over all shards."""
        ...

    def merge(self, found: Found, k: int) -> Found:
        """The k nearest of all shards' candidates for the same queries, by (distance, id)."""
        ...

    def total(self, count: int) -> int:
        """Sum over all shards."""
        ...

    def most(self, count: int) -> int:
        """Maximum over all shards."""
        ...


class OneProcess:
    """`Exchange` where all rows live here."""

    start = 0

    def __init__(self, num_nodes: int) -> None:
        self.num_nodes = num_nodes

    def fetch(
        self, columns: Sequence[Shaped[Tensor, "n ..."]], ids: Int64[Tensor, " m"]
    ) -> tuple[list[Tensor], Int64[Tensor, " m"]]:
        return list(columns), ids

    def fetch_filled(
        self,
        column: Shaped[Tensor, "n ..."],
        ids: Int64[Tensor, "b c"],
        counts: Int64[Tensor, " b"],
    ) -> tuple[Tensor, Int64[Tensor, "b c"]]:
        return column, ids

    def send(self, rows: Int64[Tensor, "m c"], ids: Int64[Tensor, " m"]) -> Int64[Tensor, "s c"]:
        return rows

    def whole(self, column: Int64[Tensor, " n"]) -> Int64[Tensor, " N"]:
        return column

    def merge(self, found: Found, k: int) -> Found:
        return found

    def total(self, count: int) -> int:
        return count

    def most(self, count: int) -> int:
        return count
