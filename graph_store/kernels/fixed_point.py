"""Rows as integers, so that their sums are exact: the same for any order, split and device.

A row x stands for the integers y = rint(x scale), |y| < 2^bits, with a power of two as scale and so
few bits that N rows add up within 62. float32 entries that are not 2^(24 - bits) times smaller than
the largest are kept as they are; others are rounded to the grid (2^-45 of the largest entry for
100,000 rows).

Squared distances are float64 and sums of fixed order (`rows.tree_sum`), the same bits anywhere;
they are added as two words of fixed point, which loses nothing above 2^(-2 bits) of their bound.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from .rows import tree_sum

# Differences of integers stay exact in float64.
_MOST_BITS = 51
_MIDDLE_ROWS = 1 << 10
# Keeps the scale in float64's range for the smallest rows.
_LEAST_EXPONENT = -900


@dataclass(frozen=True)
class Grid:
    """What turns rows into integers.

    Attributes:
        scale: A power of two.
        bits: Of an entry, without sign.
        dim: D.
    """

    scale: float
    bits: int
    dim: int

    def rows(self, features: Float[Tensor, "n D"]) -> Float64[Tensor, "n D"]:
        """The integers, as float64."""
        return features.to(torch.float64).mul(self.scale).round()

    def middle(self, features: Float[Tensor, "n D"]) -> Float64[Tensor, " D"]:
        """Where rows lie: the median of about 1,024 of them, on the grid; 0 without rows."""
        if not len(features):
            return torch.zeros(self.dim, dtype=torch.float64, device=features.device)
        return self.rows(features[:: max(1, len(features) // _MIDDLE_ROWS)]).median(0).values

    @property
    def exponent(self) -> int:
        """Squared distances of points with entries up to 2^bits are below 2^exponent."""
        return 2 * self.bits + 2 + self.dim.bit_length()

    @property
    def word_factors(self) -> tuple[float, float]:
        """What brings a squared distance, and then what its first word leaves, to a word."""
        return 2.0 ** (self.bits - self.exponent), 2.0**self.bits

    def words(self, squares: Float64[Tensor, " n"]) -> Int64[Tensor, "2"]:
        """The sum of non-negative squared distances, in two words that may be added exactly."""
        first, second = self.word_factors
        scaled = squares * first
        high = scaled.floor()
        low = scaled.sub(high).mul(second).floor()
        return torch.stack([high, low]).to(torch.int64).sum(1)

    def value(self, high: int, low: int) -> float:
        """The sum of squared distances that two words stand for."""
        return math.ldexp((high << self.bits) + low, self.exponent - 2 * self.bits)

    def squared(self, value: float) -> float:
        """A squared distance on the grid, in the units of the features."""
        return value / self.scale / self.scale


def make_grid(largest: float, num_rows: int, dim: int) -> Grid:
    """The grid for `num_rows` rows of all shards with entries up to `largest`."""
    bits = min(_MOST_BITS, 62 - num_rows.bit_length())
    exponent = max(_LEAST_EXPONENT, math.frexp(largest)[1])
    return Grid(math.ldexp(1.0, bits - exponent), bits, dim)


def squared_distances(
    rows: Float64[Tensor, "n D"], points: Float64[Tensor, "n D"]
) -> Float64[Tensor, " n"]:
    """Row by row, with a value that depends on the two rows alone."""
    return tree_sum((rows - points).square())


def means(sums: Int64[Tensor, "K D"], counts: Int64[Tensor, " K"]) -> Float64[Tensor, "K D"]:
    """Sums divided by counts >= 1; exact where the mean is an integer, as for equal rows."""
    whole = torch.div(sums, counts[:, None], rounding_mode="floor")
    rest = (sums - whole * counts[:, None]).to(torch.float64)
    return whole.to(torch.float64) + rest / counts[:, None].to(torch.float64)
