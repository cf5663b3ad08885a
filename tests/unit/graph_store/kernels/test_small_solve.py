"""Conjugate gradients on a batch's graph against dense solves."""

from __future__ import annotations

import pytest
import torch
from labelmesh.graph_store.kernels.batch_graph import BatchGraph, connect, incident_sums
from labelmesh.graph_store.kernels.small_solve import Solve, System, make_system
from torch import Tensor

F64 = torch.float64
N = 40


def _graph() -> BatchGraph:
    rng = torch.Generator().manual_seed(0)
    ids = torch.stack([torch.randperm(N - 1, generator=rng)[:4] for _ in range(N)])
    return connect(ids + (ids >= torch.arange(N)[:, None]).to(torch.int64))


def _random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


FREE = torch.arange(N) % 5 != 0


def _system(columns: int) -> tuple[System, Tensor]:
    """A system and its dense matrices, one for each column of weights."""
    graph = _graph()
    weights = _random(len(graph.first), columns).abs()
    diagonal = incident_sums(graph, weights) + 0.1
    dense = torch.zeros(columns, N, N, dtype=F64)
    dense[:, graph.first, graph.second] = -weights.T
    dense += dense.transpose(1, 2).clone()
    dense += torch.diag_embed(diagonal.T)
    return make_system(graph, weights, diagonal, FREE), dense[:, FREE][:, :, FREE]


@pytest.mark.parametrize("num_columns", [1, 3, 16, 37])
@pytest.mark.parametrize("is_shared", [True, False])
def test_all_columns_equal_a_dense_solve(num_columns: int, is_shared: bool) -> None:
    system, dense = _system(1 if is_shared else num_columns)
    rhs = _random(N, num_columns, seed=2)
    state = Solve.begin(system, rhs)
    assert state.run(1e-13, 200)
    expected = torch.linalg.solve(dense, rhs[FREE].T[:, :, None])[:, :, 0].T
    torch.testing.assert_close(state.solution[FREE], expected, rtol=1e-10, atol=1e-11)
    assert (state.solution[~FREE] == 0).all()


def test_going_on_is_as_good_as_one_run() -> None:
    system, _ = _system(1)
    rhs = _random(N, 5, seed=2)
    whole, parts = Solve.begin(system, rhs), Solve.begin(system, rhs)
    whole.run(1e-12, 200)
    for tol in (1e-2, 1e-5, 1e-12):
        parts.run(tol, 200)
    assert torch.equal(whole.solution, parts.solution)


def test_a_column_does_not_depend_on_its_company() -> None:
    system, _ = _system(1)
    rhs = _random(N, 50, seed=2)
    rhs[:, 7] = 0
    together = Solve.begin(system, rhs)
    together.run(1e-12, 200)
    assert (together.solution[:, 7] == 0).all()
    for column in (0, 31, 49):
        alone = Solve.begin(system, rhs[:, column : column + 1])
        alone.run(1e-12, 200)
        assert torch.equal(alone.solution[:, 0], together.solution[:, column])


def test_blocks_of_iterations_take_the_same_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    system, _ = _system(1)
    compiled, blocks = (Solve.begin(system, _random(N, 4, seed=2)) for _ in range(2))
    compiled.run(1e-12, 200)
    monkeypatch.setattr(Solve, "_run_compiled", Solve._run_on_device)
    assert blocks.run(1e-12, 200)
    torch.testing.assert_close(blocks.solution, compiled.solution, rtol=1e-10, atol=1e-12)


def test_too_few_steps_are_reported() -> None:
    system, _ = _system(1)
    state = Solve.begin(system, _random(N, 4, seed=2))
    assert not state.run(1e-12, 3)
    assert state.steps == 3
