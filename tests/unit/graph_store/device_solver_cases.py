"""Solvers on a graph that is not on the CPU: everything stays where the graph is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.kernels import spmm
from labelmesh.graph_store.kernels.csr import Csr
from labelmesh.graph_store.knn_graph import knn_graph
from labelmesh.graph_store.solvers import laplace, local_global, poisson
from labelmesh.tests.unit.graph_store.other_device import DEVICE, OtherDevice
from torch import Tensor

N, C = 2100, 3


@pytest.fixture(autouse=True)
def other_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(spmm, "multiply_on_device", by_gathering)
    with OtherDevice():
        yield


def by_gathering(offsets: Tensor, cols: Tensor, vals: Tensor, f: Tensor) -> Tensor:
    """The product of sparse rows without sparse tensors, which the device has not."""
    num_rows = offsets.shape[0] - 1
    rows = torch.arange(num_rows, device=DEVICE).repeat_interleave(offsets.diff())
    out = torch.zeros(num_rows, f.shape[1], dtype=f.dtype, device=DEVICE)
    return out.index_add(0, rows, vals[:, None] * f[cols])


def test_tensors_arrive() -> None:
    assert torch.ones(2).to(DEVICE).device == DEVICE


@pytest.mark.parametrize(
    ("solver", "options", "dtype"),
    [
        (laplace, {}, torch.float64),
        (laplace, {"fidelity": 2.0}, torch.float64),
        (poisson, {}, torch.float64),
        (local_global, {}, torch.float32),
    ],
)
def test_solutions_are_those_of_the_cpu(
    solver: Any, options: dict[str, Any], dtype: torch.dtype
) -> None:
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    here = knn_graph(x, k=8).affinity("self_tuning")
    csr = here.csr
    there = LocalAffinity(
        Csr(csr.offsets.to(DEVICE), csr.cols.to(DEVICE), csr.vals.to(DEVICE), csr.num_cols)
    )
    labels = torch.full((N,), -1)
    labels[::210] = torch.arange(10) % C
    options = {**options, "tol": 1e-5 if dtype == torch.float32 else 1e-9, "dtype": dtype}
    expected = solver(here, labels, **options)
    found = solver(there, labels.to(DEVICE), **options)
    assert found.device == DEVICE
    scale = float(expected.abs().max())
    tolerance = 1e-3 if dtype == torch.float32 else 1e-7
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=tolerance * scale)
