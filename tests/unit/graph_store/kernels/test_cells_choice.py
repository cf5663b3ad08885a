"""When a graph is built through cells, and that this does not show in it."""

from __future__ import annotations

import pytest
import torch
from labelmesh.graph_store.kernels import cells_choice, knn_cells, knn_cpu
from labelmesh.graph_store.kernels.cells import Cells, make_cells
from labelmesh.graph_store.kernels.knn import Metric, knn_self_join, make_bank, make_search
from torch import Tensor


def self_search(rows: Tensor, k: int, metric: Metric = "euclidean") -> knn_cpu.Search:
    own = torch.arange(rows.shape[0])
    return make_search(make_bank(rows, own, metric), rows, k, own)


def make_rows(kind: str, num_rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if kind == "plane":
        return torch.randn(num_rows, 2, generator=generator) @ torch.randn(
            2, 12, generator=generator
        )
    return torch.randn(num_rows, 12, generator=generator)


@pytest.mark.parametrize("kind", ["plane", "random"])
def test_prediction_is_the_share_of_pairs_that_bounds_leave(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all rows as the sample, against the bound of every pair in float64."""
    task = self_search(make_rows(kind, 600), 5)
    monkeypatch.setattr(cells_choice, "_QUERIES", 600)
    monkeypatch.setattr(cells_choice, "_MEMBERS", 600)
    cells = make_cells(task.filter.bank, 12)
    rows, centers = task.filter.bank.rows.double(), cells.centers.double()
    own = torch.empty(600, dtype=torch.int64)
    own[cells.members] = torch.repeat_interleave(torch.arange(12), cells.starts.diff())
    distances = torch.cdist(rows, rows).fill_diagonal_(torch.inf)
    radii = distances.kthvalue(5 + knn_cpu.PAD, dim=1).values
    along = centers[own][:, None] - centers[own][None]
    projections = ((rows[:, None] - rows[None]) * along).sum(-1)
    is_left = projections <= radii[:, None] * along.norm(dim=-1)
    share = cells_choice.predict_share(task, cells.centers)
    assert share == pytest.approx(float(is_left.double().mean()), abs=1e-3)


def test_a_sample_predicts_nearly_as_well() -> None:
    task = self_search(make_rows("plane", 4000), 5)
    cells = make_cells(task.filter.bank, 40)
    predicted = cells_choice.predict_share(task, cells.centers)
    products, multiply = [], torch.mm

    def count(a: Tensor, b: Tensor, *, out: Tensor) -> Tensor:
        products.append(a.shape[0] * b.shape[1])
        return multiply(a, b, out=out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "mm", count)
        knn_cells.preselect(task, cells, 13)
    visited = sum(products) / 4000**2
    assert 0.5 * predicted < visited < 3 * predicted
    assert visited < 0.2


@pytest.mark.parametrize(("kind", "is_pruned"), [("plane", True), ("random", False)])
def test_graph_is_built_through_cells_where_this_pays(
    kind: str, is_pruned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cells_choice, "MIN_ROWS", 2500)
    monkeypatch.setattr(cells_choice, "MAX_SHARE", 0.2)
    rows, searched = make_rows(kind, 2500), []
    search = knn_cells.search

    def note(task: knn_cpu.Search, cells: Cells) -> knn_cpu.Found:
        searched.append(cells.half.shape[0])
        return search(task, cells)

    monkeypatch.setattr(knn_cells, "search", note)
    ids, distances = knn_self_join(rows, 6)
    assert searched == ([25] if is_pruned else [])
    expected = knn_cpu.self_join(self_search(rows, 6))
    assert torch.equal(ids, expected[0])
    assert torch.equal(distances, expected[1])


def test_few_rows_and_inner_products_are_not_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cells_choice.choose_cells(self_search(make_rows("plane", 500), 5)) is None
    monkeypatch.setattr(cells_choice, "MIN_ROWS", 1000)
    monkeypatch.setattr(cells_choice, "MAX_SHARE", 0.2)
    task = self_search(make_rows("plane", 2500), 5, "inner_product")
    assert cells_choice.choose_cells(task) is None
    assert cells_choice.choose_cells(self_search(make_rows("plane", 2500), 5)) is not None


def test_cells_grow_with_the_root_of_the_rows() -> None:
    assert [cells_choice.default_cells(n) for n in (0, 1, 100, 60_000)] == [1, 1, 5, 122]
