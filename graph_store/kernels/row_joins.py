"""Integers along the entries of sparse rows: the smallest, the one at the heaviest entry, the one
with the most weight."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from .compiled import compiled, for_each_range, split_rows
from .csr import Csr, coalesce


def row_minimum(csr: Csr, values: Int64[Tensor, " num_cols"]) -> Int64[Tensor, " n"]:
    """Smallest value among the columns of each row; the largest int64 for empty rows."""
    largest = torch.iinfo(torch.int64).max
    out = torch.full((csr.num_rows,), largest, device=values.device)
    if values.device.type != "cpu":
        return out.scatter_reduce(0, csr.rows, values[csr.cols], "amin", include_self=True)
    arrays = csr.offsets.numpy(), csr.cols.numpy(), values.numpy(), out.numpy()
    ranges = split_rows(csr.num_rows, csr.cols.shape[0])
    for_each_range(lambda start, stop: _row_minimum(*arrays, start, stop), ranges)
    return out


def at_heaviest(csr: Csr, values: Int64[Tensor, " num_cols"]) -> Int64[Tensor, " n"]:
    """Value at the heaviest entry of each row among those with a value >= 0; -1 where none has.

    Of equally heavy entries the smallest value counts.
    """
    if values.device.type != "cpu":
        return _at_heaviest_torch(csr, values)
    out = torch.full((csr.num_rows,), -1)
    arrays = (
        csr.offsets.numpy(),
        csr.cols.numpy(),
        csr.vals.numpy(),
        values.numpy(),
        out.numpy(),
    )
    ranges = split_rows(csr.num_rows, csr.cols.shape[0])
    for_each_range(lambda start, stop: _at_heaviest(*arrays, start, stop), ranges)
    return out


def with_most_weight(
    csr: Csr, values: Int64[Tensor, " num_cols"], count: int
) -> Int64[Tensor, " n"]:
    """For each row the value in 0..count-1 whose entries weigh most together; -1 where none is.

    Values of -1 have no vote. Of equally heavy values the smallest is taken.
    """
    if values.device.type != "cpu":
        return _with_most_weight_torch(csr, values, count)
    out = torch.full((csr.num_rows,), -1)
    arrays = csr.offsets.numpy(), csr.cols.numpy(), csr.vals.numpy(), values.numpy(), out.numpy()

    def run(start: int, stop: int) -> None:
        _with_most_weight(*arrays, np.zeros(count), start, stop)

    for_each_range(run, split_rows(csr.num_rows, csr.cols.shape[0]))
    return out


def _with_most_weight_torch(
    csr: Csr, values: Int64[Tensor, " num_cols"], count: int
) -> Int64[Tensor, " n"]:
    found = values[csr.cols]
    known = found >= 0
    votes = coalesce(csr.rows[known], found[known], csr.vals[known], csr.num_rows, count)
    return _at_heaviest_torch(votes, torch.arange(count, device=values.device))


def _at_heaviest_torch(csr: Csr, values: Int64[Tensor, " num_cols"]) -> Int64[Tensor, " n"]:
    rows, found = csr.rows, values[csr.cols]
    weight: Float[Tensor, " nnz"] = torch.where(found >= 0, csr.vals, -1.0)
    heaviest = weight.new_full((csr.num_rows,), -1.0)
    heaviest = heaviest.scatter_reduce(0, rows, weight, "amax", include_self=True)
    none = torch.iinfo(torch.int64).max
    candidate = torch.where((found >= 0) & (weight == heaviest[rows]), found, none)
    out = torch.full((csr.num_rows,), none, device=values.device)
    out = out.scatter_reduce(0, rows, candidate, "amin", include_self=True)
    return torch.where(out == none, -1, out)


@compiled
def _row_minimum(
    offsets: NDArray[np.int64],
    cols: NDArray[np.int64],
    values: NDArray[np.int64],
    out: NDArray[np.int64],
    start: int,
    stop: int,
) -> None:
    for i in range(start, stop):
        smallest = out[i]
        for entry in range(offsets[i], offsets[i + 1]):
            smallest = min(smallest, values[cols[entry]])
        out[i] = smallest


@compiled
def _at_heaviest(
    offsets: NDArray[np.int64],
    cols: NDArray[np.int64],
    vals: NDArray[np.floating],
    values: NDArray[np.int64],
    out: NDArray[np.int64],
    start: int,
    stop: int,
) -> None:
    for i in range(start, stop):
        heaviest, chosen = -1.0, -1
        for entry in range(offsets[i], offsets[i + 1]):
            value, weight = values[cols[entry]], vals[entry]
            if value < 0 or weight < heaviest:
                continue
            if weight > heaviest or value < chosen:
                heaviest, chosen = weight, value
        out[i] = chosen


@compiled
def _with_most_weight(
    offsets: NDArray[np.int64],
    cols: NDArray[np.int64],
    vals: NDArray[np.floating],
    values: NDArray[np.int64],
    out: NDArray[np.int64],
    votes: NDArray[np.float64],
    start: int,
    stop: int,
) -> None:
    for i in range(start, stop):
        for entry in range(offsets[i], offsets[i + 1]):
            value = values[cols[entry]]
            if value >= 0:
                votes[value] += vals[entry]
        heaviest, chosen = -1.0, -1
        for entry in range(offsets[i], offsets[i + 1]):
            value = values[cols[entry]]
            if value < 0:
                continue
            if votes[value] > heaviest or (votes[value] == heaviest and value < chosen):
                heaviest, chosen = votes[value], value
        out[i] = chosen
        for entry in range(offsets[i], offsets[i + 1]):
            if values[cols[entry]] >= 0:
                votes[values[cols[entry]]] = 0.0
