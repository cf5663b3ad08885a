"""Rows as so small integers that float64 holds their squared distances exactly.

Products of them may be taken in any order, by any library: they are the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from . import races_compiled
from .compiled import for_each_range, split_rows
from .fixed_point import Grid
from .precision import exact_products
from .races_compiled import WORD

# Numbers of a block of float64 rows.
_BLOCK = 1 << 20
# float32 holds the integers of the rows.
_MOST_BITS = 23


class WholeRows:
    """Own rows, and how far each is from the nearest of some of all shards' rows.

    Args:
        features: On the CPU or any device; `grid` makes rows of all shards comparable.
        origin: A row on the grid, the same on all shards, to which rows are shifted.
        all_max: Of numbers over the shards.

    Attributes:
        nearest: Squared distance from the nearest point that was taken; inf without any. In units
            of its own.
    """

    def __init__(
        self,
        features: Float[Tensor, "n D"],
        grid: Grid,
        origin: Float64[Tensor, " D"],
        all_max: Callable[[Tensor], Tensor],
    ) -> None:
        num_rows, device = len(features), features.device
        self._origin, self._unit = origin, 1.0
        largest = torch.zeros(1, dtype=torch.float64, device=device)
        for part in self._blocks(features):
            shifted = grid.rows(features[part]) - origin
            largest = torch.maximum(largest, shifted.abs().max())
        # The squared distance of two rows is at most D (2 2^bits)^2 <= 2^53.
        bits = min(_MOST_BITS, (51 - grid.dim.bit_length()) // 2)
        exponent = int(torch.frexp(all_max(largest)).exponent)
        self._unit = 2.0 ** min(0, bits - exponent)
        self._rows = torch.empty(features.shape, dtype=torch.float32, device=device)
        self._squares = torch.empty(num_rows, dtype=torch.float64, device=device)
        for part in self._blocks(features):
            rows = self._round(grid.rows(features[part]))
            self._rows[part], self._squares[part] = rows, rows.square().sum(1)
        self.nearest = torch.full_like(self._squares, torch.inf)
        self._offered = self.nearest[:, None]

    def offer(self, points: Float64[Tensor, "t D"]) -> Int64[Tensor, "t 2"]:
        """The sum of `nearest` if each of some points on the grid were taken, as two words."""
        small = self._round(points)
        squares = small.square().sum(1)
        self._offered = self.nearest.new_empty(len(self._rows), len(points))
        if points.device.type == "cpu":
            return self._offer_on_cpu(small, squares)
        totals = torch.zeros(len(points), 2, dtype=torch.int64, device=points.device)
        with exact_products(points.device):
            for part in self._blocks(self._rows):
                products = self._rows[part].to(torch.float64) @ small.T
                found = self._squares[part, None] + squares - 2 * products
                self._offered[part] = torch.minimum(found, self.nearest[part, None])
                whole = self._offered[part].to(torch.int64)
                totals += torch.stack([whole >> WORD, whole & ((1 << WORD) - 1)], -1).sum(0)
        return totals

    def take(self, which: int) -> None:
        """Take one of the points that were offered last."""
        self.nearest = self._offered[:, which].contiguous()

    def _offer_on_cpu(
        self, points: Float64[Tensor, "t D"], squares: Float64[Tensor, " t"]
    ) -> Int64[Tensor, "t 2"]:
        num_rows, width = len(self._rows), points.numel()
        ranges = split_rows(num_rows, num_rows * width)
        totals = np.zeros((len(ranges), len(points), 2), np.int64)
        parts = {span: part for part, span in enumerate(ranges)}

        def run(a: int, b: int) -> None:
            races_compiled.offer(
                self._rows[a:b].numpy(),
                self._squares[a:b].numpy(),
                self.nearest[a:b].numpy(),
                points.contiguous().numpy(),
                squares.numpy(),
                self._offered[a:b].numpy(),
                totals[parts[a, b]],
            )

        for_each_range(run, ranges)
        return torch.from_numpy(totals.sum(0))

    def _round(self, points: Float64[Tensor, "m D"]) -> Float64[Tensor, "m D"]:
        return ((points - self._origin) * self._unit).round()

    def _blocks(self, rows: Float[Tensor, "n D"]) -> Iterator[slice]:
        size = max(1, _BLOCK // max(1, rows.shape[1]))
        return (slice(start, start + size) for start in range(0, len(rows), size))
