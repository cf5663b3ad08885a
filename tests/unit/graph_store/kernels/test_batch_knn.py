"""Neighbours within a batch against a brute force over canonical distances."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from labelmesh.graph_store.kernels import batch_knn
from labelmesh.graph_store.kernels.batch_knn import nearest
from labelmesh.graph_store.kernels.rows import exact_sqrt, tree_sum
from torch import Tensor

F64 = torch.float64


def _brute_force(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    wide = rows.to(F64)
    distances = exact_sqrt(tree_sum((wide[:, None] - wide[None]).square()))
    distances.fill_diagonal_(torch.inf)
    found = distances.sort(dim=1, stable=True)
    return found.indices[:, :k], found.values[:, :k]


def _rows(kind: str, dtype: torch.dtype) -> Tensor:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(400, 7, generator=rng, dtype=dtype)
    large = 1e30 if dtype == torch.float32 else 1e140
    tight = 1e-6 if dtype == torch.float32 else 1e-13
    return {
        "random": x,
        "shifted": x + 1000,
        "tiny": x * 1e-12,
        "outlier": torch.cat([x[:1] * large, x[1:]]),
        "grid": torch.randint(0, 3, (400, 4), generator=rng).to(dtype),
        "tight": x[:3][torch.arange(400) % 3] + tight * x,
        "half identical": torch.cat([torch.ones(200, 7, dtype=dtype), x[200:]]),
        "identical": torch.ones(400, 7, dtype=dtype),
        "few": x[:3],
    }[kind]


KINDS = ["random", "shifted", "tiny", "outlier", "grid", "tight"]
KINDS += ["half identical", "identical", "few"]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_are_those_of_a_brute_force(kind: str, dtype: torch.dtype) -> None:
    rows = _rows(kind, dtype)
    for k in (1, 12, len(rows) - 1):
        if k < len(rows):
            ours, expected = nearest(rows, k), _brute_force(rows, k)
            assert torch.equal(ours[0], expected[0])
            assert torch.equal(ours[1], expected[1])


def test_rows_without_columns_are_identical() -> None:
    ids, distances = nearest(torch.zeros(4, 0), 2)
    assert ids.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]
    assert (distances == 0).all()


def test_what_float32_cannot_tell_is_searched_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[tuple[torch.dtype, int, int]] = []
    whole = batch_knn._search

    def watch(rows: Tensor, scaled: Tensor, queries: Tensor, *rest: Tensor) -> Tensor:
        left = whole(rows, scaled, queries, *rest)
        searched.append((scaled.dtype, len(queries), len(left)))
        return left

    monkeypatch.setattr(batch_knn, "_search", watch)
    # 300 of 400 rows lie closer together than products of float32 can tell.
    rng = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 7, generator=rng)
    rows[:300] = 1 + 1e-5 * rows[:300]
    ids, distances = nearest(rows, 10)
    assert torch.equal(ids, _brute_force(rows, 10)[0])
    assert torch.equal(distances, _brute_force(rows, 10)[1])
    left = searched[0][2]
    assert 300 <= left < 320
    assert searched == [(torch.float32, 400, left), (F64, left, 0)]


def test_number_of_threads_does_not_matter() -> None:
    rows = torch.randn(900, 20, generator=torch.Generator().manual_seed(0))
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(nearest(rows, 9))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_a_lower_precision_of_the_program_changes_nothing() -> None:
    rows = torch.randn(300, 40, generator=torch.Generator().manual_seed(0))
    expected = nearest(rows, 9)
    products: Any = torch.backends.mkldnn  # the type stubs lack its `matmul`
    before = products.matmul.fp32_precision
    products.matmul.fp32_precision = "bf16"
    try:
        ids, distances = nearest(rows, 9)
    finally:
        products.matmul.fp32_precision = before
    assert torch.equal(ids, expected[0])
    assert torch.equal(distances, expected[1])
