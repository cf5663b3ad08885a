"""Compiled product of sparse rows with dense columns."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from jaxtyping import Float, Int, Int64
from numpy.typing import NDArray
from torch import Tensor

from .compiled import compiled, for_each_range, split_rows
from .precision import exact_products


def multiply_rows(
    offsets: Int64[Tensor, " n1"],
    cols: Int64[Tensor, " nnz"],
    vals: Float[Tensor, " nnz"],
    f: Float[Tensor, "num_cols C"],
) -> Float[Tensor, "n C"]:
    """Row i of the result is the sum of vals[e] f[cols[e]] over the row's entries, in their order.

    On the GPU cuSPARSE chooses the order.
    """
    dtype = torch.promote_types(vals.dtype, f.dtype)
    vals, f = vals.to(dtype), f.to(dtype).contiguous()
    num_rows = offsets.shape[0] - 1
    if f.device.type != "cpu":
        return multiply_on_device(offsets, cols, vals, f)
    out = torch.empty(num_rows, f.shape[1], dtype=dtype)
    row, col, val = offsets.numpy(), cols.numpy(), vals.numpy()
    dense, product = f.detach().numpy(), out.numpy()

    def run(start: int, stop: int) -> None:
        _multiply(row, col, val, dense, product, start, stop)

    for_each_range(run, split_rows(num_rows, cols.shape[0] * f.shape[1]))
    return out


def multiply_on_device(
    offsets: Int64[Tensor, " n1"],
    cols: Int[Tensor, " nnz"],
    vals: Float[Tensor, " nnz"],
    f: Float[Tensor, "num_cols C"],
) -> Float[Tensor, "n C"]:
    """The product by torch's sparse library, in the tensors' dtype."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        shape = (offsets.shape[0] - 1, f.shape[0])
        sparse = torch.sparse_csr_tensor(offsets.to(cols.dtype), cols, vals, shape)
    with exact_products(f.device):
        return sparse @ f


@compiled
def _multiply(
    offsets: NDArray[np.int64],
    cols: NDArray[np.int64],
    vals: NDArray[np.floating],
    f: NDArray[np.floating],
    out: NDArray[np.floating],
    start: int,
    stop: int,
) -> None:
    width = f.shape[1]
    for i in range(start, stop):
        # Slices, as their indices cannot be negative, let the compiler vectorise the inner loop.
        total = out[i, :width]
        total[:] = 0
        for entry in range(offsets[i], offsets[i + 1]):
            value, source = vals[entry], f[cols[entry], :width]
            for c in range(width):
                total[c] += value * source[c]
