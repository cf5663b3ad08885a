"""Rows as the filter of the kNN search sees them, and how far its values can be off.

The filter is float32, and float64 for queries of which float32 cannot tell the neighbours (tight
clusters, ties). It works on key(x, y) = |x|^2/2 + |y|^2/2 - xy, half the squared distance; for
"inner_product" on -xy. Rows are shifted by a common centre, which leaves distances alone and makes
lengths and hence errors small, and scaled by a power of two, which is exact and keeps squares in
range.

Error: with u the unit round-off, D terms per product and rows of length at most N, the product and
the two half lengths are off by D u N^2 each and D u N^2 together, shifting by 4 u N^2, and the sums
and comparisons by less than 14 u N^2: together less than 2 (D + 16) u N^2. Sums may be taken in any
order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from .rows import Metric

UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}
# Queries with entries this much larger than the bank's could overflow in its frame.
MAX_RATIO = 2.0**20
# Rows that the centre is taken from.
_MIDDLE_ROWS = 1 << 10


@dataclass(frozen=True)
class Scaled:
    """Shifted and scaled rows. `half` is |row|^2/2, or 0 for inner products."""

    rows: Float[Tensor, "n D"]
    half: Float[Tensor, " n"]


@dataclass(frozen=True)
class Frame:
    """Where rows are shifted and how they are scaled: row * scale - center."""

    scale: float
    center: Float32[Tensor, " D"] | None
    is_product: bool

    def apply(self, rows: Float32[Tensor, "n D"], dtype: torch.dtype = torch.float32) -> Scaled:
        shifted = rows.to(dtype) * self.scale
        if self.center is not None:
            shifted -= self.center
        if self.is_product:
            return Scaled(shifted, shifted.new_zeros(rows.shape[0]))
        return Scaled(shifted, torch.linalg.vector_norm(shifted, dim=1).square().div(2))


@dataclass(frozen=True)
class Filter:
    """Both sides of a search in float32; `longest` bounds the lengths of their rows."""

    queries: Scaled
    bank: Scaled
    frame: Frame
    longest: float

    def limits(self, distances: Float64[Tensor, " m"]) -> Float64[Tensor, " m"]:
        """Rows at most this far have a float64 key of at most this."""
        # Twice, because the distance itself is rounded too.
        return self.true_keys(distances) + 2 * self._guard(torch.float64)

    def certain(
        self, distances: Float64[Tensor, " m"], bounds: Float32[Tensor, " m"]
    ) -> Bool[Tensor, " m"]:
        """Whether every row whose key is at least `bounds` is farther than `distances`.

        Lists with room left (`bounds` = inf) have left out nothing.
        """
        is_farther = torch.lt(
            self.true_keys(distances) + self._errors(bounds), bounds.to(torch.float64)
        )
        return is_farther.logical_or(torch.isinf(bounds))

    def _errors(self, bounds: Float32[Tensor, " m"]) -> Float64[Tensor, " m"]:
        """How far below its computed key, which is at least `bounds`, a true key can be."""
        if self.frame.is_product:
            return torch.full_like(bounds, self._guard(torch.float32), dtype=torch.float64)
        return key_errors(self.queries.half, bounds, self.bank.rows.shape[1])

    def true_keys(self, distances: Float64[Tensor, " m"]) -> Float64[Tensor, " m"]:
        if self.frame.is_product:
            return distances * self.frame.scale**2
        return (distances * self.frame.scale).square().div(2)

    def _guard(self, dtype: torch.dtype) -> float:
        return key_error(self.bank.rows.shape[1], self.longest, dtype)


def key_error(dim: int, longest: float, dtype: torch.dtype = torch.float32) -> float:
    """How far a computed key of rows of at most this length can be from the true one."""
    # Squares of entries below 1e-19 are lost, wholly where the processor flushes them to zero.
    lost = torch.finfo(torch.float32).tiny
    return 2 * (dim + 16) * (UNIT_ROUNDOFF[dtype] * longest**2 + lost)


def key_errors(
    half: Float32[Tensor, " m"], keys: Float32[Tensor, " m"], dim: int
) -> Float64[Tensor, " m"]:
    """By how much a pair's true key can fall short of a computed one that is at least `keys`.

    Half the squared length of one of the two rows is given. Were the true key less by more than
    that, the other row would be at most sqrt(2 key) longer, and the error of so short rows is less:
    what is far away does no harm.
    """
    longest = (
        half.to(torch.float64).mul(2).sqrt() + keys.to(torch.float64).clamp(min=0).mul(2).sqrt()
    )
    # 1e-3 covers the rounding of half and keys themselves.
    lost = torch.finfo(torch.float32).tiny
    return 2 * (dim + 16) * (UNIT_ROUNDOFF[torch.float32] * 1.001 * longest.square() + lost)


@dataclass(frozen=True)
class Bank:
    """Rows to be searched, with what the filter needs of them whatever the queries are."""

    rows: Float32[Tensor, "n D"]
    ids: Int64[Tensor, " n"]
    frame: Frame
    scaled: Scaled
    largest: float
    longest: float

    def filter(self, queries: Float32[Tensor, "m D"]) -> tuple[Bank, Filter]:
        """The filter for some queries, and this bank in the frame that the filter uses."""
        largest = largest_entry(queries)
        if largest > MAX_RATIO * self.largest:
            return self._reframed(largest).filter(queries)
        scaled = self.scaled if queries is self.rows else self.frame.apply(queries)
        longest = max(self.longest, longest_row(scaled.rows))
        return self, Filter(scaled, self.scaled, self.frame, longest)

    def _reframed(self, largest: float) -> Bank:
        return _bank_in_frame(self.rows, self.ids, largest, self.frame.is_product)


def bank_in_frame(rows: Float32[Tensor, "n D"], ids: Int64[Tensor, " n"], frame: Frame) -> Bank:
    """A bank in a frame that is given: the one that all shards share."""
    scaled = frame.apply(rows)
    return Bank(rows, ids, frame, scaled, largest_entry(rows), longest_row(scaled.rows))


def make_bank(rows: Float32[Tensor, "n D"], ids: Int64[Tensor, " n"], metric: Metric) -> Bank:
    """Centre the rows and scale their entries into [-1, 1]."""
    return _bank_in_frame(rows, ids, largest_entry(rows), metric == "inner_product")


def _bank_in_frame(
    rows: Float32[Tensor, "n D"], ids: Int64[Tensor, " n"], largest: float, is_product: bool
) -> Bank:
    scale = power_of_two(largest)
    has_center = rows.shape[0] > 0 and not is_product
    frame = Frame(scale, middle_of(some_rows(rows) * scale) if has_center else None, is_product)
    scaled = frame.apply(rows)
    return Bank(rows, ids, frame, scaled, largest, longest_row(scaled.rows))


def some_rows(rows: Float32[Tensor, "n D"], total: int | None = None) -> Float32[Tensor, "m D"]:
    """About 1,024 rows evenly spread, of `total` that there are together with others'."""
    return rows[:: max(1, (total or rows.shape[0]) // _MIDDLE_ROWS)]


def middle_of(rows: Float32[Tensor, "m D"]) -> Float32[Tensor, " D"]:
    """The median of every column. Any centre is valid; this one does not follow outliers."""
    return rows.median(0).values


def longest_row(rows: Float32[Tensor, "n D"]) -> float:
    """An upper bound on the lengths of the rows."""
    # 1e-3 covers the rounding of the float32 norm itself.
    return 1.001 * float(torch.linalg.vector_norm(rows, dim=1).max()) if rows.numel() else 0.0


def largest_entry(rows: Float32[Tensor, "n D"]) -> float:
    """The largest magnitude of any entry; 0 without rows."""
    return float(rows.abs().max()) if rows.numel() else 0.0


def power_of_two(largest: float) -> float:
    """2^-e with largest 2^-e in [0.5, 1); within float32's normal range."""
    exponent = torch.frexp(torch.tensor(largest, dtype=torch.float64)).exponent.item()
    return 2.0 ** -max(-120, min(120, int(exponent)))
