"""The fused product of a graph's system against dense matrices."""

from __future__ import annotations

import pytest
import torch
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.kernels.graph_operator import (
    GraphOperator,
    group_sums,
    scaled_operator,
)
from torch import Tensor

N = 90


@pytest.fixture
def dense() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    w = torch.rand(N, N, generator=generator, dtype=torch.float64)
    w = torch.where(w > 0.8, w, 0.0).triu(1)
    return w + w.T


@pytest.fixture
def parts() -> tuple[Tensor, Tensor, Tensor]:
    """Diagonal, scale (with zeros) and an order of the rows."""
    generator = torch.Generator().manual_seed(1)
    scale = torch.rand(N, generator=generator, dtype=torch.float64)
    scale[::7] = 0
    diagonal = torch.rand(N, generator=generator, dtype=torch.float64) + 1
    return diagonal, scale, torch.randperm(N, generator=generator)


def make(dense: Tensor, parts: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype) -> GraphOperator:
    import scipy.sparse

    diagonal, scale, order = parts
    w = LocalAffinity.from_scipy(scipy.sparse.csr_array(dense.numpy()))
    return scaled_operator(w.csr, diagonal, scale, scale, order, order.argsort(), dtype)


def matrix(dense: Tensor, parts: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    diagonal, scale, order = parts
    a = torch.diag(diagonal) - scale[:, None] * dense * scale
    return a[order][:, order]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_product_is_that_of_the_reordered_matrix(
    dense: Tensor, parts: tuple[Tensor, Tensor, Tensor], dtype: torch.dtype
) -> None:
    f = torch.randn(N, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    operator = make(dense, parts, dtype)
    out = operator(f.to(dtype), f.to(dtype))
    assert out.dtype == dtype
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    torch.testing.assert_close(
        out.double(), matrix(dense, parts) @ f, rtol=tolerance, atol=tolerance
    )


def test_group_sums_are_the_restricted_matrix(
    dense: Tensor, parts: tuple[Tensor, Tensor, Tensor]
) -> None:
    generator = torch.Generator().manual_seed(3)
    group = torch.randint(-1, 5, (N,), generator=generator)
    basis = torch.rand(N, generator=generator, dtype=torch.float64)
    p = torch.zeros(N, 5, dtype=torch.float64)
    p[torch.arange(N)[group >= 0], group[group >= 0]] = basis[group >= 0]
    operator = make(dense, parts, torch.float64)
    found = group_sums(operator, group, basis, group, basis, 5)
    torch.testing.assert_close(found, p.T @ matrix(dense, parts) @ p)
