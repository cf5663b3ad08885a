"""Products with the graph p-Laplacian, whose weights differ from class to class.

An edge's weight for class c is w_ij max(|u_ic - u_jc|, floor)^q. It is computed where it is used:
stored, the weights of all classes would take edges x C numbers.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64
from numpy.typing import NDArray
from torch import Tensor

from .compiled import compiled, for_each_range, split_rows
from .csr import Csr

# Numbers (edges x classes) that a block of rows may take on a device.
BLOCK = 1 << 23


def flow(
    csr: Csr,
    u: Float64[Tensor, "num_cols C"],
    x: Float64[Tensor, "num_cols C"],
    own: slice,
    q: float,
    floor: float = 0.0,
) -> Float64[Tensor, "n C"]:
    """Row i: sum_j w_ij max(|u_i - u_j|, floor)^q (x_i - x_j), each class by itself.

    Args:
        u, x: Rows of all buffer columns.
        own: Where the own rows lie in them.
        q: At least 0.

    Cost:
        Of the order of a product with W where q is a whole or half number below 16; elsewhere
        powers take ten times as long.
    """
    if u.device.type != "cpu":
        return flow_in_blocks(csr, u, x, own, q, floor)
    out = torch.empty(csr.num_rows, u.shape[1], dtype=torch.float64)
    row, col, val = csr.offsets.numpy(), csr.cols.numpy(), csr.vals.double().numpy()
    left, right, total = u.contiguous().numpy(), x.contiguous().numpy(), out.numpy()
    first, whole, half = own.start, int(q), q % 1 == 0.5
    ranges = split_rows(csr.num_rows, csr.cols.shape[0] * u.shape[1])
    if q < 16 and q % 0.5 == 0:
        for_each_range(
            lambda start, stop: _flow(
                row, col, val, left, right, total, first, whole, half, floor, start, stop
            ),
            ranges,
        )
    else:
        for_each_range(
            lambda start, stop: _any_flow(
                row, col, val, left, right, total, first, q, floor, start, stop
            ),
            ranges,
        )
    return out


def stiffness(
    csr: Csr, u: Float64[Tensor, "num_cols C"], own: slice, q: float, floor: float = 0.0
) -> Float64[Tensor, "n C"]:
    """Row i: sum_j w_ij max(|u_i - u_j|, floor)^q, the diagonal of `flow` as a matrix."""
    return flow_in_blocks(csr, u, None, own, q, floor)


def flow_in_blocks(
    csr: Csr,
    u: Float64[Tensor, "num_cols C"],
    x: Float64[Tensor, "num_cols C"] | None,
    own: slice,
    q: float,
    floor: float,
) -> Float64[Tensor, "n C"]:
    """`flow`, or `stiffness` where `x` is None, by torch on any device, some rows at a time."""
    parts = []
    per_row = max(1, csr.cols.shape[0] * u.shape[1] // max(1, csr.num_rows))
    step = max(1, BLOCK // per_row)
    for start in range(0, csr.num_rows, step):
        stop = min(start + step, csr.num_rows)
        first, last = int(csr.offsets[start]), int(csr.offsets[stop])
        counts = csr.offsets[start : stop + 1].diff()
        cols = csr.cols[first:last]
        rows = torch.arange(own.start + start, own.start + stop, device=cols.device)
        rows = rows.repeat_interleave(counts, output_size=last - first)
        values = csr.vals[first:last, None] * (u[rows] - u[cols]).abs().clamp(min=floor).pow(q)
        if x is not None:
            values = values * (x[rows] - x[cols])
        offsets = csr.offsets[start : stop + 1] - first
        parts.append(torch.segment_reduce(values, "sum", offsets=offsets, initial=0.0))
    return torch.cat(parts) if parts else u.new_zeros(0, u.shape[1])


@compiled
def _flow(
    offsets: NDArray[np.int64],
    cols: NDArray[np.int64],
    vals: NDArray[np.float64],
    u: NDArray[np.float64],
    x: NDArray[np.float64],
    out: NDArray[np.float64],
    first: int,
    whole: int,
    half: bool,
    floor: float,
    start: int,
    stop: int,
) -> None:
    width = u.shape[1]
    # The binary digits of the exponent choose factors; without branches the loop is vectorised.
    one, two, four, eight = whole & 1 > 0, whole & 2 > 0, whole & 4 > 0, whole & 8 > 0
    for i in range(start, stop):
        # Slices, as their indices cannot be negative, help the compiler too.
        total, mine, ours = out[i, :width], u[first + i, :width], x[first + i, :width]
        total[:] = 0
        for entry in range(offsets[i], offsets[i + 1]):
            value, other = vals[entry], cols[entry]
            theirs, others = u[other, :width], x[other, :width]
            for c in range(width):
                d = max(abs(mine[c] - theirs[c]), floor)
                d2 = d * d
                d4 = d2 * d2
                weight = value * (ours[c] - others[c])
                weight *= np.sqrt(d) if half else 1.0
                weight *= d if one else 1.0
                weight *= d2 if two else 1.0
                weight *= d4 if four else 1.0
                weight *= d4 * d4 if eight else 1.0
                total[c] += weight


@compiled
def _any_flow(
    offsets: NDArray[np.int64],
    cols: NDArray[np.int64],
    vals: NDArray[np.float64],
    u: NDArray[np.float64],
    x: NDArray[np.float64],
    out: NDArray[np.float64],
    first: int,
    q: float,
    floor: float,
    start: int,
    stop: int,
) -> None:
    width = u.shape[1]
    for i in range(start, stop):
        total, mine, ours = out[i, :width], u[first + i, :width], x[first + i, :width]
        total[:] = 0
        for entry in range(offsets[i], offsets[i + 1]):
            value, other = vals[entry], cols[entry]
            theirs, others = u[other, :width], x[other, :width]
            for c in range(width):
                d = max(abs(mine[c] - theirs[c]), floor)
                total[c] += value * d**q * (ours[c] - others[c])
