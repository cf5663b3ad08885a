"""The collectives of one process."""

from __future__ import annotations

import pytest
import torch
from labelmesh.graph_store.local_view import LocalGraphView


@pytest.fixture
def view() -> LocalGraphView:
    return LocalGraphView(torch.tensor([[1], [2], [-1]]), torch.zeros(3, 1), torch.zeros(3, 1))


def test_gather_takes_rows(view: LocalGraphView) -> None:
    x = torch.tensor([[1, 2], [3, 4], [5, 6]])
    assert view.gather(x, torch.tensor([2, 0, 2])).tolist() == [[5, 6], [1, 2], [5, 6]]
    assert view.gather(x[:, 0], torch.tensor([1])).tolist() == [3]


@pytest.mark.parametrize(("reduce", "expected"), [("sum", [17, 20, 3]), ("amax", [10, 20, 3])])
def test_scatter_reduces_into_rows(view: LocalGraphView, reduce: str, expected: list[int]) -> None:
    out = torch.tensor([10, 0, 3])
    found = view.scatter(
        torch.tensor([5, 20, 2]),
        torch.tensor([0, 1, 0]),
        out,
        reduce,  # type: ignore[arg-type]
    )
    assert found.tolist() == expected
    assert out.tolist() == [10, 0, 3]


def test_scatter_of_rows_and_of_nothing(view: LocalGraphView) -> None:
    out = torch.zeros(3, 2)
    found = view.scatter(torch.ones(2, 2), torch.tensor([1, 1]), out, "sum")
    assert found.tolist() == [[0, 0], [2, 2], [0, 0]]
    nothing = view.scatter(torch.ones(0, 2), torch.empty(0, dtype=torch.int64), out, "amax")
    assert torch.equal(nothing, out)


def test_reductions_over_one_process_change_nothing(view: LocalGraphView) -> None:
    x = torch.tensor([1.0, 2.0])
    assert torch.equal(view.all_sum(x), x)
    assert torch.equal(view.all_max(x), x)
    assert view.node_ids.tolist() == [0, 1, 2]
    assert view.num_nodes == 3
