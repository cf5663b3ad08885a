"""Sparse rows against dense matrices and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from labelmesh.graph_store.kernels.csr import Csr, coalesce, row_sums, spmm, symmetrize
from torch import Tensor


def random_entries(num_nodes: int, k: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.rand(num_nodes, num_nodes, generator=generator).fill_diagonal_(0)
    cols = chosen.topk(k, dim=1).indices.flatten()
    rows = torch.arange(num_nodes).repeat_interleave(k)
    return rows, cols, torch.rand(num_nodes * k, generator=generator, dtype=torch.float64)


def dense(csr: Csr) -> Tensor:
    out = torch.zeros(csr.num_rows, csr.num_cols, dtype=csr.vals.dtype)
    out[csr.rows, csr.cols] = csr.vals
    return out


@pytest.mark.parametrize("reduce", ["sum", "amax"])
def test_symmetrize_equals_dense(reduce: str) -> None:
    rows, cols, vals = random_entries(40, 5)
    a = torch.zeros(40, 40, dtype=torch.float64)
    a[rows, cols] = vals
    csr = symmetrize(rows, cols, vals, 40, reduce)  # type: ignore[arg-type]
    assert torch.equal(dense(csr), a + a.T if reduce == "sum" else torch.maximum(a, a.T))
    for i in range(40):
        assert (csr.cols[csr.offsets[i] : csr.offsets[i + 1]].diff() > 0).all()


def test_entries_are_coalesced_into_rectangular_rows() -> None:
    rows, cols = torch.tensor([1, 0, 1, 1]), torch.tensor([4, 2, 0, 4])
    csr = coalesce(rows, cols, torch.tensor([1.0, 2.0, 3.0, 4.0]), 3, 5)
    assert csr.offsets.tolist() == [0, 1, 3, 3]
    assert csr.cols.tolist() == [2, 0, 4]
    assert csr.vals.tolist() == [2.0, 3.0, 5.0]
    assert csr.rows.tolist() == [0, 1, 1]


def test_too_many_places_are_refused() -> None:
    none = torch.empty(0, dtype=torch.int64)
    with pytest.raises(ValueError, match="cannot be numbered in 64 bits"):
        coalesce(none, none, torch.empty(0), 2**40, 2**40)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("num_classes", [1, 3, 10])
def test_product_equals_scipy(dtype: torch.dtype, num_classes: int) -> None:
    csr = symmetrize(*random_entries(200, 7), 200)
    f = torch.rand(200, num_classes, generator=torch.Generator().manual_seed(1)).to(dtype)
    matrix = scipy.sparse.csr_array(
        (csr.vals.numpy(), csr.cols.numpy(), csr.offsets.numpy()), shape=(200, 200)
    )
    np.testing.assert_allclose(spmm(csr, f).numpy(), matrix @ f.numpy().astype(float), rtol=1e-14)


def test_own_rows_have_the_bits_of_the_whole_product() -> None:
    csr = symmetrize(*random_entries(3000, 9), 3000)
    f = torch.rand(3000, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    whole, (first, last) = spmm(csr, f), (700, 1450)
    begin, end = csr.offsets[first], csr.offsets[last]
    cols, halo = csr.cols[begin:end], csr.cols[begin:end].unique()
    part = Csr(
        csr.offsets[first : last + 1] - begin,
        torch.searchsorted(halo, cols),
        csr.vals[begin:end],
        halo.shape[0],
    )
    assert torch.equal(spmm(part, f[halo]), whole[first:last])


def test_rows_without_entries_are_zero() -> None:
    csr = coalesce(torch.tensor([2]), torch.tensor([0]), torch.tensor([5.0]), 4, 4)
    assert spmm(csr, torch.ones(4, 2)).tolist() == [[0, 0], [0, 0], [5, 5], [0, 0]]
    assert row_sums(csr).tolist() == [0, 0, 5, 0]
