"""Products with diag(d) - V for sparse V, fused, and V's sums over groups of rows and columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from numpy.typing import NDArray
from torch import Tensor

from . import spmm
from .compiled import compiled, for_each_range, split_rows
from .csr import Csr


@dataclass(frozen=True)
class GraphOperator:
    """Own rows of diag(d) - V over the columns of a buffer.

    Attributes:
        offsets, cols, vals: V, row by row.
        diagonal: d.
    """

    offsets: Int64[Tensor, " n1"]
    cols: Int[Tensor, " nnz"]
    vals: Float[Tensor, " nnz"]
    diagonal: Float[Tensor, " n"]

    def __call__(
        self, own: Float[Tensor, "n c"], buffer: Float[Tensor, "num_cols c"]
    ) -> Float[Tensor, "n c"]:
        """diag(d) `own` - V `buffer`."""
        if own.device.type != "cpu":
            product = spmm.multiply_on_device(self.offsets, self.cols, self.vals, buffer)
            return self.diagonal[:, None] * own - product
        out = torch.empty_like(own)
        arrays = self.offsets.numpy(), self.cols.numpy(), self.vals.numpy(), self.diagonal.numpy()
        rest = own.numpy(), buffer.numpy(), out.numpy()
        ranges = split_rows(own.shape[0], self.cols.shape[0] * own.shape[1], min_work=2_000_000)
        for_each_range(lambda start, stop: _apply(*arrays, *rest, start, stop), ranges)
        return out


def scaled_operator(
    csr: Csr,
    diagonal: Float64[Tensor, " n"],
    row_scale: Float64[Tensor, " n"],
    col_scale: Float64[Tensor, " num_cols"],
    order: Int64[Tensor, " n"],
    col_places: Int64[Tensor, " num_cols"],
    dtype: torch.dtype,
) -> GraphOperator:
    """diag(d) - diag(row_scale) W diag(col_scale), its row i being row `order[i]` of W.

    Column j of W becomes column `col_places[j]`; entries keep their order within a row.
    """
    lengths = csr.offsets.diff()[order]
    offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
    index = torch.int32 if csr.num_cols <= torch.iinfo(torch.int32).max else torch.int64
    if csr.cols.device.type != "cpu":
        rows = order.repeat_interleave(lengths, output_size=csr.cols.shape[0])
        within = torch.arange(rows.shape[0], device=rows.device) - offsets[:-1].repeat_interleave(
            lengths, output_size=rows.shape[0]
        )
        entries = csr.offsets[rows] + within
        cols = csr.cols[entries]
        vals = csr.vals[entries].to(torch.float64) * row_scale[rows] * col_scale[cols]
        cols, vals = col_places[cols].to(index), vals.to(dtype)
    else:
        cols = torch.empty(csr.cols.shape[0], dtype=index)
        vals = torch.empty(csr.cols.shape[0], dtype=dtype)
        sources = csr.offsets.numpy(), csr.cols.numpy(), csr.vals.numpy()
        scales = row_scale.numpy(), col_scale.numpy()
        places = order.numpy(), col_places.numpy()
        results = offsets.numpy(), cols.numpy(), vals.numpy()
        for_each_range(
            lambda start, stop: _scale_rows(*sources, *scales, *places, *results, start, stop),
            split_rows(csr.num_rows, csr.cols.shape[0]),
        )
    return GraphOperator(offsets, cols, vals, diagonal[order].to(dtype))


def group_sums(
    operator: GraphOperator,
    own_group: Int64[Tensor, " n"],
    own_basis: Float64[Tensor, " n"],
    group: Int64[Tensor, " num_cols"],
    basis: Float64[Tensor, " num_cols"],
    num_groups: int,
) -> Float64[Tensor, "g g"]:
    """Own rows' share of P^T A P, where column g of P is `basis` on the rows of group g.

    Rows and columns of group -1 count for nothing. `own_group` goes by the operator's rows, `group`
    by its columns.
    """
    if group.device.type == "cpu":
        out = torch.zeros(num_groups, num_groups, dtype=torch.float64)
        parts = operator.offsets, operator.cols, operator.vals, operator.diagonal
        columns = own_group, own_basis, group, basis, out
        _group_sums(*(x.numpy() for x in parts), *(x.numpy() for x in columns))
        return out
    rows = torch.arange(own_group.shape[0], device=group.device)
    rows = rows.repeat_interleave(operator.offsets.diff(), output_size=operator.cols.shape[0])
    left, right = own_group[rows], group[operator.cols]
    values = -own_basis[rows] * operator.vals.to(torch.float64) * basis[operator.cols]
    both, known = (left >= 0) & (right >= 0), own_group >= 0
    squares = operator.diagonal.to(torch.float64) * own_basis.square()
    places = torch.cat([(left * num_groups + right)[both], (own_group * (num_groups + 1))[known]])
    sums = values.new_zeros(num_groups * num_groups)
    sums.index_put_((places,), torch.cat([values[both], squares[known]]), accumulate=True)
    return sums.reshape(num_groups, num_groups)


@compiled
def _scale_rows(
    offsets: NDArray[np.int64],
    cols: NDArray[np.int64],
    vals: NDArray[np.floating],
    row_scale: NDArray[np.float64],
    col_scale: NDArray[np.float64],
    order: NDArray[np.int64],
    col_places: NDArray[np.int64],
    out_offsets: NDArray[np.int64],
    out_cols: NDArray[np.integer],
    out_vals: NDArray[np.floating],
    start: int,
    stop: int,
) -> None:
    for i in range(start, stop):
        row = order[i]
        at = out_offsets[i]
        for entry in range(offsets[row], offsets[row + 1]):
            col = cols[entry]
            out_cols[at] = col_places[col]
            out_vals[at] = vals[entry] * row_scale[row] * col_scale[col]
            at += 1


@compiled
def _apply(
    offsets: NDArray[np.int64],
    cols: NDArray[np.integer],
    vals: NDArray[np.floating],
    diagonal: NDArray[np.floating],
    own: NDArray[np.floating],
    buffer: NDArray[np.floating],
    out: NDArray[np.floating],
    start: int,
    stop: int,
) -> None:
    width = buffer.shape[1]
    for i in range(start, stop):
        total, mine = out[i, :width], own[i, :width]
        for c in range(width):
            total[c] = diagonal[i] * mine[c]
        for entry in range(offsets[i], offsets[i + 1]):
            value, source = vals[entry], buffer[cols[entry], :width]
            for c in range(width):
                total[c] -= value * source[c]


@compiled
def _group_sums(
    offsets: NDArray[np.int64],
    cols: NDArray[np.integer],
    vals: NDArray[np.floating],
    diagonal: NDArray[np.floating],
    own_group: NDArray[np.int64],
    own_basis: NDArray[np.float64],
    group: NDArray[np.int64],
    basis: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None:
    for i in range(diagonal.shape[0]):
        row = own_group[i]
        if row < 0:
            continue
        out[row, row] += diagonal[i] * own_basis[i] * own_basis[i]
        for entry in range(offsets[i], offsets[i + 1]):
            col = group[cols[entry]]
            if col >= 0:
                out[row, col] -= own_basis[i] * vals[entry] * basis[cols[entry]]
