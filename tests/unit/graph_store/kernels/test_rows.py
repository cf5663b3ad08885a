"""Canonical distances, unit rows and sums in a fixed order."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.graph_store.kernels import knn_compiled
from labelmesh.graph_store.kernels.rows import (
    canonical_distances,
    exact_sqrt,
    normalize_rows,
    prepare_rows,
    similarity_from_distance,
    tree_sum,
)


def random_rows(num_rows: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(num_rows, dim, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.integers(1, 70), st.integers(0, 1000))
def test_tree_sum_is_the_sum(width: int, seed: int) -> None:
    terms = random_rows(3, width, seed).to(torch.float64)
    exact = torch.tensor([math.fsum(row) for row in terms.tolist()], dtype=torch.float64)
    torch.testing.assert_close(tree_sum(terms), exact, rtol=0, atol=1e-13)


def test_tree_sum_of_nothing_is_zero() -> None:
    assert tree_sum(torch.empty(2, 0)).tolist() == [0, 0]


def test_tree_sum_leaves_its_input_alone() -> None:
    terms = torch.arange(5.0)
    tree_sum(terms)
    assert terms.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("dim", [1, 2, 3, 7, 64, 129])
def test_distance_of_a_pair_does_not_depend_on_its_company(dim: int) -> None:
    a, b = random_rows(40, dim), random_rows(40, dim, 1)
    together = canonical_distances(a, b)
    alone = torch.cat([canonical_distances(a[i : i + 1], b[i : i + 1]) for i in range(40)])
    spread = canonical_distances(a[:, None].expand(-1, 2, -1), b[:, None].expand(-1, 2, -1))
    assert torch.equal(together, alone)
    assert torch.equal(together, spread[:, 1])
    assert torch.equal(together, canonical_distances(b, a))


@pytest.mark.parametrize("is_product", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 5, 16, 33, 100])
def test_compiled_distance_has_the_same_bits(dim: int, is_product: bool) -> None:
    a, b = random_rows(200, dim), random_rows(200, dim, 1)
    expected = canonical_distances(a, b, "inner_product" if is_product else "euclidean")
    terms = np.empty(dim)
    found = [knn_compiled.canonical(x, y, terms, is_product) for x, y in zip(a.numpy(), b.numpy())]
    assert found == expected.tolist()


def test_distance_is_euclidean() -> None:
    a, b = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0]])
    assert canonical_distances(a, b).item() == 5.0


def test_square_root_is_correctly_rounded() -> None:
    x = torch.rand(20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert exact_sqrt(x).tolist() == [math.sqrt(value) for value in x.tolist()]


def test_unit_rows_have_length_one_and_zero_rows_stay_zero() -> None:
    rows = normalize_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))


@pytest.mark.parametrize("scale", [1e-200, 1e-30, 1e30, 1e200])
def test_extreme_lengths_are_normalised(scale: float) -> None:
    x = random_rows(5, 3).to(torch.float64)
    torch.testing.assert_close(normalize_rows(x * scale), normalize_rows(x), rtol=1e-7, atol=0)


def test_scaling_by_a_power_of_two_changes_no_bit_of_a_unit_row() -> None:
    x = random_rows(50, 9)
    assert torch.equal(normalize_rows(x * 1024), normalize_rows(x))


def test_only_cosine_changes_rows() -> None:
    x = random_rows(4, 3)
    assert torch.equal(prepare_rows(x, "euclidean"), x)
    assert torch.equal(prepare_rows(x, "inner_product"), x)
    assert torch.equal(prepare_rows(x, "cosine"), normalize_rows(x))


def test_similarity_of_unit_rows_is_their_cosine() -> None:
    rows = normalize_rows(random_rows(6, 4))
    distances = canonical_distances(rows[:3], rows[3:])[None]
    cosine = (rows[:3].to(torch.float64) * rows[3:].to(torch.float64)).sum(1)[None]
    torch.testing.assert_close(similarity_from_distance(distances), cosine, rtol=0, atol=2e-7)


def test_no_neighbor_has_similarity_zero() -> None:
    assert similarity_from_distance(torch.tensor([[torch.inf, 0.0]])).tolist() == [[0.0, 1.0]]
