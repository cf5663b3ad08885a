"""Rows as the float32 filter of the kNN search sees them, and how far its values can be off.

The filter works on key(x, y) = |x|^2/2 + |y|^2/2 - xy, half the squared distance ("inner_product":
on -xy). Rows are shifted by a common centre, which leaves distances alone and makes lengths and
hence errors small, and scaled by a power of two, which is exact and keeps squares in range.

Error: with u = 2^-24, D terms per product and rows of length at most N, the product and the two
half lengths are off by D u N^2 each and D u N^2 together, shifting by 4 u N^2, and the sums and
comparisons by less than 10 u N^2: together less than 2 (D + 16) u N^2 = `guard`. Section 4 of
"incremental exact kNN" has the general form; sums may be taken in any order.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float32, Float64
from torch import Tensor

from .rows import Metric

UNIT_ROUNDOFF = 2.0**-24


@dataclass(frozen=True)
class Scaled:
    """Shifted and scaled rows. `half` is |row|^2/2, or 0 for inner products."""

    rows: Float32[Tensor, "n D"]
    half: Float32[Tensor, " n"]


@dataclass(frozen=True)
class Filter:
    """Both sides of a search; `factor` turns canonical (squared) distances into the filter's."""

    queries: Scaled
    bank: Scaled
    guard: float
    factor: float
    is_product: bool

    def limits(self, distances: Float64[Tensor, " m"]) -> Float32[Tensor, " m"]:
        """Rows at most this far have a key of at most this: the distance's key plus the guard."""
        return _round_up(self.true_keys(distances) + self.guard)

    def certain(self, distances: Float64[Tensor, " m"], bounds: Float32[Tensor, " m"]) -> Tensor:
        """Whether every row whose key is at least `bounds` is farther than `distances`."""
        return self.true_keys(distances) + self.guard < bounds.to(torch.float64)

    def true_keys(self, distances: Float64[Tensor, " m"]) -> Float64[Tensor, " m"]:
        scaled = distances * self.factor
        return scaled if self.is_product else scaled.square().div(2)


@dataclass(frozen=True)
class Frame:
    """Where rows are shifted and how they are scaled: row * scale - center."""

    scale: float
    center: Float32[Tensor, " D"] | None
    is_product: bool

    def apply(self, rows: Float32[Tensor, "n D"]) -> Scaled:
        shifted = rows * self.scale
        if self.center is not None:
            shifted -= self.center
        if self.is_product:
            return Scaled(shifted, shifted.new_zeros(rows.shape[0]))
        return Scaled(shifted, torch.linalg.vector_norm(shifted, dim=1).square().div(2))

    def filter(self, queries: Scaled, bank: Scaled) -> Filter:
        longest = max(_longest(queries.rows), _longest(bank.rows))
        guard = 2 * (bank.rows.shape[1] + 16) * UNIT_ROUNDOFF * longest**2
        factor = self.scale**2 if self.is_product else self.scale
        return Filter(queries, bank, guard, factor, self.is_product)


def choose_frame(bank: Float32[Tensor, "n D"], largest: float, metric: Metric) -> Frame:
    """The frame in which the bank is centred and entries up to `largest` lie in [-1, 1]."""
    is_product = metric == "inner_product"
    scale = _power_of_two(largest)
    has_center = bank.shape[0] > 0 and not is_product
    return Frame(scale, (bank * scale).mean(0) if has_center else None, is_product)


def make_filter(
    queries: Float32[Tensor, "m D"], bank: Float32[Tensor, "n D"], metric: Metric
) -> Filter:
    """Shift and scale both sides; pass the same tensor twice for a self-join."""
    frame = choose_frame(bank, max(largest_entry(queries), largest_entry(bank)), metric)
    scaled = frame.apply(bank)
    return frame.filter(scaled if queries is bank else frame.apply(queries), scaled)


def _longest(rows: Float32[Tensor, "n D"]) -> float:
    # 1e-3 covers the rounding of the float32 norm itself.
    return 1.001 * float(torch.linalg.vector_norm(rows, dim=1).max()) if rows.numel() else 0.0


def largest_entry(rows: Float32[Tensor, "n D"]) -> float:
    """Largest absolute value, 0 of no rows."""
    return float(rows.abs().max()) if rows.numel() else 0.0


def _power_of_two(largest: float) -> float:
    """2^-e with largest 2^-e in [0.5, 1); within float32's normal range."""
    exponent = torch.frexp(torch.tensor(largest, dtype=torch.float64)).exponent.item()
    return 2.0 ** -max(-120, min(120, int(exponent)))


def _round_up(x: Float64[Tensor, " m"]) -> Float32[Tensor, " m"]:
    rounded = x.to(torch.float32)
    up = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    return torch.where(rounded.to(torch.float64) < x, up, rounded)
