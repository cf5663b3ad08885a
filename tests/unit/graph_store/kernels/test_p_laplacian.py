"""Products with class-wise weights against dense loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from labelmesh.graph_store.kernels import p_laplacian
from labelmesh.graph_store.kernels.csr import Csr, symmetrize
from labelmesh.graph_store.kernels.p_laplacian import flow, flow_in_blocks, stiffness
from torch import Tensor

N, C = 37, 5


@pytest.fixture
def csr() -> Csr:
    """Random symmetric weights; node 11 has none."""
    generator = torch.Generator().manual_seed(0)
    rows, cols = torch.randint(N, (2, 150), generator=generator)
    kept = (rows != cols) & (rows != 11) & (cols != 11)
    vals = torch.rand(150, generator=generator, dtype=torch.float64)
    return symmetrize(rows[kept], cols[kept], vals[kept], N, "amax")


@pytest.fixture
def columns() -> tuple[Tensor, Tensor]:
    u, x = torch.rand(2, N, C, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    u[:9] = 0.25  # differences of exactly zero
    return u, x


def dense(csr: Csr) -> np.ndarray:
    matrix = np.zeros((N, N))
    matrix[csr.rows.numpy(), csr.cols.numpy()] = csr.vals.numpy()
    return matrix


@pytest.mark.parametrize("q", [0.0, 0.5, 1.0, 1.3, 2.0, 3.5, 7.0, 8.0, 15.5, 17.0])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_flow_and_stiffness_equal_dense_sums(
    csr: Csr, columns: tuple[Tensor, Tensor], q: float, floor: float
) -> None:
    u, x = columns
    d = (u[:, None] - u).abs().clamp(min=floor).pow(q).numpy()
    weights = dense(csr)[:, :, None] * d
    expected = (weights * (x[:, None] - x).numpy()).sum(1)
    np.testing.assert_allclose(
        flow(csr, u, x, slice(0, N), q, floor), expected, rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(
        stiffness(csr, u, slice(0, N), q, floor), weights.sum(1), rtol=1e-12, atol=1e-14
    )


def test_rows_of_a_shard_are_those_of_the_whole(csr: Csr, columns: tuple[Tensor, Tensor]) -> None:
    start, stop = 9, 30
    first, last = csr.offsets[start], csr.offsets[stop]
    offsets = csr.offsets[start : stop + 1] - first
    part = Csr(offsets, csr.cols[first:last], csr.vals[first:last], N)
    own = slice(start, stop)
    assert torch.equal(flow(part, *columns, own, 3.0), flow(csr, *columns, slice(0, N), 3.0)[own])


@pytest.mark.parametrize("block", [1, 40, 1 << 23])
def test_blocks_do_not_show(
    csr: Csr, columns: tuple[Tensor, Tensor], block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p_laplacian, "BLOCK", block)
    found = flow_in_blocks(csr, *columns, slice(0, N), 2.5, 1e-9)
    torch.testing.assert_close(
        found, flow(csr, *columns, slice(0, N), 2.5, 1e-9), rtol=1e-13, atol=1e-15
    )


def test_threads_do_not_show() -> None:
    generator = torch.Generator().manual_seed(0)
    rows, cols = torch.randint(5000, (2, 60_000), generator=generator)
    vals = torch.rand(60_000, generator=generator, dtype=torch.float64)
    csr = symmetrize(rows, cols, vals, 5000, "amax")
    u, x = torch.rand(2, 5000, 4, generator=generator, dtype=torch.float64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = flow(csr, u, x, slice(0, 5000), 1.0)
        torch.set_num_threads(3)
        assert torch.equal(flow(csr, u, x, slice(0, 5000), 1.0), one)
    finally:
        torch.set_num_threads(before)


def test_no_rows_and_no_edges() -> None:
    none = Csr(
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0).double(),
        0,
    )
    empty = torch.zeros(0, C, dtype=torch.float64)
    assert flow(none, empty, empty, slice(0, 0), 1.0).shape == (0, C)
    assert stiffness(none, empty, slice(0, 0), 1.0).shape == (0, C)
    bare = Csr(
        torch.zeros(4, dtype=torch.int64),
        torch.zeros(0, dtype=torch.int64),
        torch.zeros(0).double(),
        3,
    )
    x = torch.rand(3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert (flow(bare, x, x, slice(0, 3), 1.0) == 0).all()
