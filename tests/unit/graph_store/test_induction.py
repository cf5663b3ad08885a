"""New rows: worked by hand, and as one more node of the graph."""

from __future__ import annotations

import math

import pytest
import torch
from labelmesh.graph_store.induction import LabeledRows
from labelmesh.graph_store.kernels.rows import prepare_rows


def rows_of(
    x: list[list[float]], bandwidth: list[float], probs: list[list[float]], k: int = 2
) -> LabeledRows:
    return LabeledRows(
        torch.tensor(x),
        torch.tensor(bandwidth, dtype=torch.float64),
        torch.tensor(probs, dtype=torch.float64),
        "euclidean",
        k,
    )


def test_weights_are_those_of_the_graph() -> None:
    known = rows_of([[0.0], [3.0], [50.0]], [1.0, 2.0, 1.0], [[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    # x = 1: distances 1 and 2, so eps_x = 2; w = exp(-4 / (2 * 1)) and exp(-4 * 4 / (2 * 2)).
    near, far = math.exp(-2), math.exp(-4)
    expected = torch.tensor([[near, far]], dtype=torch.float64) / (near + far)
    torch.testing.assert_close(known.spread_to(torch.tensor([[1.0]])), expected)


def test_an_equal_row_decides_and_several_share() -> None:
    known = rows_of([[0.0], [0.0], [1.0]], [1.0, 1.0, 1.0], [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    got = known.spread_to(torch.tensor([[0.0], [1.0]]))
    assert got.tolist() == [[0.5, 0.5], [0.0, 1.0]]


def test_rows_without_a_label_have_no_say() -> None:
    known = rows_of([[0.0], [3.0], [50.0]], [1.0, 1.0, 1.0], [[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    got = known.spread_to(torch.tensor([[1.0], [0.0], [49.0], [1e9]]))
    assert got.tolist() == [[0.0, 1.0], [0.0, 0.0], [0.0, 1.0], [0.0, 1.0]]
    nobody = rows_of([[0.0], [3.0]], [1.0, 1.0], [[0.0, 0.0], [0.0, 0.0]])
    assert nobody.spread_to(torch.tensor([[1.0]])).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("count", [1, 7, 500])
def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 3, generator=generator)
    probs = torch.rand(60, 4, generator=generator, dtype=torch.float64)
    known = LabeledRows(x, torch.rand(60, generator=generator).double(), probs, "euclidean", 5)
    queries = torch.randn(count, 3, generator=generator)
    whole = known.spread_to(queries)
    monkeypatch.setattr("labelmesh.graph_store.induction._BLOCK_NUMBERS", 100)
    assert torch.equal(known.spread_to(queries), whole)


def test_cosine_knows_directions_alone() -> None:
    x = prepare_rows(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), "cosine")
    probs = torch.eye(3, dtype=torch.float64)
    known = LabeledRows(x, torch.ones(3, dtype=torch.float64), probs, "cosine", 2)
    got = known.spread_to(torch.tensor([[5.0, 0.0], [0.0, 0.0]]))
    assert got[0].tolist() == [1.0, 0.0, 0.0]
    # A row of zeros is as far from all; the lowest numbers are its neighbours.
    torch.testing.assert_close(got[1], torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64))
