"""The vector work of block conjugate gradients, fused: one pass for what would be many.

Rows are cut into segments. Sums over rows are taken within a segment in row order and then over
the segments, so they depend neither on threads nor on how rows are handed to them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from .compiled import compiled, for_each_range

SEGMENT_ROWS = 1024
_MIN_WORK = 400_000


def even_segments(num_rows: int, device: torch.device) -> Int64[Tensor, " s1"]:
    """Offsets of segments of `SEGMENT_ROWS` rows."""
    starts = torch.arange(0, num_rows, SEGMENT_ROWS, device=device)
    return torch.cat([starts, torch.full((1,), num_rows, device=device)])


@dataclass(frozen=True)
class Steps:
    """What is the same in all steps of one solve.

    Attributes:
        segments: Segment g has the rows segments[g] .. segments[g+1]-1.
        diagonal: Of the preconditioner.
        basis: The coarse basis: vector g is `basis` on segment g and 0 elsewhere; zeros where there
            is none.
        num_coarse: The first so many segments have a coarse basis vector.
    """

    segments: Int64[Tensor, " s1"]
    diagonal: Float[Tensor, " n"]
    basis: Float[Tensor, " n"]
    num_coarse: int

    @property
    def num_segments(self) -> int:
        return self.segments.shape[0] - 1

    def dot(self, p: Float[Tensor, "n c"], q: Float[Tensor, "n c"]) -> Float64[Tensor, " c"]:
        """Scalar products, column by column."""
        if p.device.type != "cpu":
            return (p * q).sum(0, dtype=torch.float64)
        out = p.new_empty(self.num_segments, p.shape[1])
        arrays = p.numpy(), q.numpy(), self.segments.numpy(), out.numpy()
        for_each_range(lambda a, b: _dot(*arrays, a, b), self._ranges(p))
        return out.to(torch.float64).sum(0)

    def advance(
        self,
        x: Float[Tensor, "n c"],
        r: Float[Tensor, "n c"],
        p: Float[Tensor, "n c"],
        q: Float[Tensor, "n c"],
        alpha: Float64[Tensor, " c"],
    ) -> Float64[Tensor, "m c"]:
        """x += alpha p, r -= alpha q, in place; r r, r diagonal r, and the coarse basis times r."""
        step = alpha.to(x.dtype)
        if x.device.type != "cpu":
            x.addcmul_(p, step)
            r.addcmul_(q, step, value=-1)
            square = (r * r).sum(0, dtype=torch.float64)
            scaled = (r * r * self.diagonal[:, None]).sum(0, dtype=torch.float64)
            return torch.cat([square[None], scaled[None], self._restrict(r)])
        out = x.new_empty(self.num_segments, 3, x.shape[1])
        arrays = x.numpy(), r.numpy(), p.numpy(), q.numpy(), step.numpy()
        rest = self.diagonal.numpy(), self.basis.numpy(), self.segments.numpy(), out.numpy()
        for_each_range(lambda a, b: _advance(*arrays, *rest, a, b), self._ranges(x))
        sums = out.to(torch.float64)
        return torch.cat([sums[:, :2].sum(0), sums[: self.num_coarse, 2]])

    def turn(
        self,
        p: Float[Tensor, "n c"],
        r: Float[Tensor, "n c"],
        coarse: Float64[Tensor, "g c"],
        beta: Float64[Tensor, " c"],
    ) -> None:
        """p = diagonal r + basis times `coarse` + beta p, in place."""
        keep = beta.to(p.dtype)
        if p.device.type != "cpu":
            p.mul_(keep).addcmul_(self.diagonal[:, None], r)
            if self.num_coarse:
                p.addcmul_(self.basis[:, None], self._prolong(coarse.to(p.dtype)))
            return
        filled = p.new_zeros(self.num_segments, p.shape[1])
        filled[: self.num_coarse] = coarse.to(p.dtype)
        arrays = p.numpy(), r.numpy(), filled.numpy(), keep.numpy()
        rest = self.diagonal.numpy(), self.basis.numpy(), self.segments.numpy()
        for_each_range(lambda a, b: _turn(*arrays, *rest, a, b), self._ranges(p))

    def _restrict(self, r: Float[Tensor, "n c"]) -> Float64[Tensor, "g c"]:
        covered = int(self.segments[self.num_coarse])
        weighted = (r * self.basis[:, None])[:covered].to(torch.float64)
        ends = self.segments[: self.num_coarse + 1]
        return torch.segment_reduce(weighted, "sum", offsets=ends, initial=0.0)

    def _prolong(self, coarse: Float[Tensor, "g c"]) -> Float[Tensor, "n c"]:
        out = coarse.new_zeros(self.basis.shape[0], coarse.shape[1])
        lengths = self.segments[: self.num_coarse + 1].diff()
        out[: int(self.segments[self.num_coarse])] = coarse.repeat_interleave(lengths, 0)
        return out

    def _ranges(self, x: Tensor) -> list[tuple[int, int]]:
        """Ranges of segments with about equal numbers of rows, one for each thread."""
        num_rows = x.shape[0]
        parts = max(1, min(torch.get_num_threads(), x.numel() // _MIN_WORK))
        if parts == 1:
            return [(0, self.num_segments)]
        wanted = torch.tensor([num_rows * part // parts for part in range(1, parts)])
        cuts = torch.searchsorted(self.segments, wanted).tolist()
        return list(pairwise([0, *cuts, self.num_segments]))


@compiled
def _dot(
    p: NDArray[np.floating],
    q: NDArray[np.floating],
    segments: NDArray[np.int64],
    out: NDArray[np.floating],
    start: int,
    stop: int,
) -> None:
    width = p.shape[1]
    for segment in range(start, stop):
        total = out[segment, :width]
        for c in range(width):
            total[c] = 0
        for i in range(segments[segment], segments[segment + 1]):
            own, other = p[i, :width], q[i, :width]
            for c in range(width):
                total[c] += own[c] * other[c]


@compiled
def _advance(
    x: NDArray[np.floating],
    r: NDArray[np.floating],
    p: NDArray[np.floating],
    q: NDArray[np.floating],
    alpha: NDArray[np.floating],
    diagonal: NDArray[np.floating],
    basis: NDArray[np.floating],
    segments: NDArray[np.int64],
    out: NDArray[np.floating],
    start: int,
    stop: int,
) -> None:
    width = x.shape[1]
    for segment in range(start, stop):
        square, scaled, coarse = (
            out[segment, 0, :width],
            out[segment, 1, :width],
            out[segment, 2, :width],
        )
        for c in range(width):
            square[c] = 0
            scaled[c] = 0
            coarse[c] = 0
        for i in range(segments[segment], segments[segment + 1]):
            # Three short loops: each touches few arrays, which the compiler must prove distinct.
            solution, residual = x[i, :width], r[i, :width]
            direction, image = p[i, :width], q[i, :width]
            for c in range(width):
                solution[c] += alpha[c] * direction[c]
            for c in range(width):
                residual[c] -= alpha[c] * image[c]
            for c in range(width):
                value = residual[c]
                square[c] += value * value
                scaled[c] += diagonal[i] * value * value
                coarse[c] += basis[i] * value


@compiled
def _turn(
    p: NDArray[np.floating],
    r: NDArray[np.floating],
    coarse: NDArray[np.floating],
    beta: NDArray[np.floating],
    diagonal: NDArray[np.floating],
    basis: NDArray[np.floating],
    segments: NDArray[np.int64],
    start: int,
    stop: int,
) -> None:
    width = p.shape[1]
    for segment in range(start, stop):
        lifted = coarse[segment, :width]
        for i in range(segments[segment], segments[segment + 1]):
            direction, residual = p[i, :width], r[i, :width]
            for c in range(width):
                direction[c] = (
                    diagonal[i] * residual[c] + basis[i] * lifted[c] + beta[c] * direction[c]
                )
