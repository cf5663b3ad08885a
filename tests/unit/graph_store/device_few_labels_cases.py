"""Solvers for few labels on a graph that is not on the CPU: everything stays where the graph is."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.kernels import spmm
from labelmesh.graph_store.kernels.csr import Csr
from labelmesh.graph_store.knn_graph import knn_graph
from labelmesh.graph_store.solvers import (
    class_prior_projection,
    nearest_labeled,
    p_laplace,
    poisson_mbo,
    random_walk,
    reweighted_laplace,
)
from labelmesh.tests.unit.graph_store.device_solver_cases import by_gathering
from labelmesh.tests.unit.graph_store.other_device import DEVICE, OtherDevice
from torch import Tensor

N, C = 90, 3
PRIORS = torch.tensor([0.5, 0.3, 0.2])

SOLVERS: dict[str, Callable[[LocalAffinity, Tensor], Tensor]] = {
    "poisson": lambda w, y: reweighted_laplace(w, y, "poisson", tol=1e-5),
    "properly": lambda w, y: reweighted_laplace(w, y, "properly", tol=1e-5),
    "mbo": lambda w, y: poisson_mbo(w, y, PRIORS, inner_steps=2, outer_steps=2),
    "p_laplace": lambda w, y: p_laplace(w, y, 3.3, 0.1, tol=1e-6),
    "random_walk": lambda w, y: random_walk(w, y, tol=1e-5),
    "nearest": nearest_labeled,
}


@pytest.fixture(autouse=True)
def other_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(spmm, "multiply_on_device", by_gathering)
    with OtherDevice():
        yield


@pytest.mark.parametrize("name", SOLVERS)
def test_solutions_are_those_of_the_cpu(name: str) -> None:
    x = torch.randn(N, 4, generator=torch.Generator().manual_seed(0))
    here = knn_graph(x, k=8).affinity("self_tuning")
    csr = here.csr
    there = LocalAffinity(
        Csr(csr.offsets.to(DEVICE), csr.cols.to(DEVICE), csr.vals.to(DEVICE), csr.num_cols)
    )
    labels = torch.full((N,), -1)
    labels[::15] = torch.arange(6) % C
    found = SOLVERS[name](there, labels.to(DEVICE))
    assert found.device == DEVICE
    torch.testing.assert_close(found.cpu(), SOLVERS[name](here, labels), rtol=0, atol=1e-4)


def test_class_sizes_are_those_of_the_cpu() -> None:
    scores = torch.randn(N, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.full((N,), -1)
    labels[:5] = 1
    expected = class_prior_projection(scores, labels, PRIORS)
    found = class_prior_projection(scores.to(DEVICE), labels, PRIORS)
    assert found.labels.device == DEVICE
    assert torch.equal(found.labels.cpu(), expected.labels)
    torch.testing.assert_close(found.offsets.cpu(), expected.offsets)
