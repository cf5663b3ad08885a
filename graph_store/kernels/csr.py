"""Sparse rows (CSR): building symmetric weights from edges, and products with dense columns.

A row's entries lie in ascending column order and are added in that order, so a row of a product
has the same bits whether the matrix lies in one process or its rows are spread over shards
(there `cols` index a halo buffer that is sorted by node id).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .spmm import multiply_rows


@dataclass(frozen=True)
class Csr:
    """`n` sparse rows over `num_cols` columns.

    Attributes:
        offsets: Row i has the entries offsets[i] .. offsets[i+1]-1.
        cols: Column of each entry, strictly ascending within a row.
        vals: Value of each entry.
    """

    offsets: Int64[Tensor, " n1"]
    cols: Int64[Tensor, " nnz"]
    vals: Float[Tensor, " nnz"]
    num_cols: int

    @property
    def num_rows(self) -> int:
        return self.offsets.shape[0] - 1

    @property
    def rows(self) -> Int64[Tensor, " nnz"]:
        """Row of each entry."""
        own = torch.arange(self.num_rows, device=self.offsets.device)
        return own.repeat_interleave(self.offsets.diff(), output_size=self.cols.shape[0])


def coalesce(
    rows: Int64[Tensor, " e"],
    cols: Int64[Tensor, " e"],
    vals: Float[Tensor, " e"],
    num_rows: int,
    num_cols: int,
    reduce: Literal["sum", "amax"] = "sum",
) -> Csr:
    """Sort entries by (row, column) and reduce those at the same place.

    At most two entries may meet in one place for the sum to be independent of their order.
    """
    if num_rows * num_cols > torch.iinfo(torch.int64).max:
        raise ValueError(f"{num_rows} x {num_cols} entries cannot be numbered in 64 bits")
    places, slot = torch.unique(rows * num_cols + cols, return_inverse=True)
    merged = vals.new_zeros(places.shape).scatter_reduce(
        0, slot, vals, reduce=reduce, include_self=reduce == "sum"
    )
    counts = torch.bincount(places.div(num_cols, rounding_mode="floor"), minlength=num_rows)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    return Csr(offsets, places.remainder(num_cols), merged, num_cols)


def symmetrize(
    rows: Int64[Tensor, " e"],
    cols: Int64[Tensor, " e"],
    vals: Float[Tensor, " e"],
    num_nodes: int,
    reduce: Literal["sum", "amax"] = "sum",
) -> Csr:
    """A + A^T ("sum"), or the elementwise maximum of both ("amax"), of the listed entries of A."""
    return coalesce(
        torch.cat([rows, cols]),
        torch.cat([cols, rows]),
        torch.cat([vals, vals]),
        num_nodes,
        num_nodes,
        reduce,
    )


def spmm(csr: Csr, f: Float[Tensor, "num_cols C"]) -> Float[Tensor, "n C"]:
    """Rows of the sparse matrix times dense columns, in the wider dtype of the two."""
    return multiply_rows(csr.offsets, csr.cols, csr.vals, f)


def row_sums(csr: Csr) -> Float[Tensor, " n"]:
    """Sum of each row's values, in column order."""
    ones = torch.ones(csr.num_cols, 1, dtype=csr.vals.dtype, device=csr.vals.device)
    return spmm(csr, ones)[:, 0]
