"""What a store refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from labelmesh.graph_store.checks import (
    check_ids,
    check_labels,
    check_query,
    check_rows,
    check_spec,
)
from labelmesh.graph_store.store import StoreSpec

SPEC = StoreSpec(num_nodes=5, dim=2, num_classes=3, k=2)
IDS = torch.tensor([4, 0])
ROWS = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 5}, "k = 5 must be less than num_nodes = 5"),
        ({"dim": 0}, "dim = 0 must be at least 1"),
        ({"metric": "manhattan"}, "metric = 'manhattan': use one of cosine, euclidean"),
        ({"dtype": "int8"}, "dtype = 'int8'"),
        ({"backend": "annoy"}, "backend = 'annoy'"),
    ],
)
def test_a_shape_that_no_store_can_have(change: dict[str, object], message: str) -> None:
    # pydantic does not check dataclasses, and the type checker does not see configuration files.
    spec = replace(SPEC)
    for name, value in change.items():
        object.__setattr__(spec, name, value)
    with pytest.raises(ValueError, match=message):
        check_spec(spec)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([0, 5, -1], r"node_ids \[5, -1\] are not in 0..4"),
        ([3, 1, 3, 1, 0], r"node_ids \[1, 3\] come more than once"),
        ([[0]], r"must be int64 of shape \(m,\), got torch.int64 of shape \(1, 1\)"),
    ],
)
def test_ids_that_cannot_be_written(ids: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_ids(SPEC, torch.tensor(ids), distinct=True)


def test_ids_may_be_read_more_than_once() -> None:
    check_ids(SPEC, torch.tensor([3, 3]))


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite_are_named(value: float) -> None:
    rows = ROWS.clone()
    rows[1, 0] = value
    with pytest.raises(ValueError, match=r"features has NaN or infinite .* node_ids \[0\]"):
        check_rows(SPEC, IDS, rows, None)
    with pytest.raises(ValueError, match=r"probs has NaN or infinite .* node_ids \[0\]"):
        check_rows(SPEC, IDS, ROWS, torch.nn.functional.pad(rows, (0, 1)))
    with pytest.raises(ValueError, match=r"infinite values in rows \[1\]"):
        check_query(SPEC, rows, 1)


def test_rows_of_another_shape() -> None:
    with pytest.raises(ValueError, match=r"features must be floating .* \(2, 2\), .* \(2, 3\)"):
        check_rows(SPEC, IDS, torch.zeros(2, 3), None)
    with pytest.raises(ValueError, match=r"features must be floating point .* got torch.int64"):
        check_rows(SPEC, IDS, ROWS.long(), None)
    with pytest.raises(ValueError, match=r"probs must be floating .* \(2, 3\), .* \(1, 3\)"):
        check_rows(SPEC, IDS, ROWS, torch.zeros(1, 3))


def test_values_beyond_half_precision_are_refused_where_it_is_stored() -> None:
    rows = torch.tensor([[0.0, 65504.0], [70000.0, 0.0]])
    check_rows(SPEC, IDS, rows, None)
    with pytest.raises(ValueError, match=r"features of node_ids \[0\] exceed 65504"):
        check_rows(replace(SPEC, dtype="float16"), IDS, rows, None)


def test_values_that_the_cast_makes_infinite_are_refused() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1e300, 0.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"features of node_ids \[0\] exceed 3.40282e\+38"):
        check_rows(SPEC, IDS, rows[:, :2], None)
    with pytest.raises(ValueError, match=r"probs of node_ids \[0\] exceed .* largest float32"):
        check_rows(SPEC, IDS, ROWS, rows)
    with pytest.raises(ValueError, match=r"\(in float32\) infinite values in rows \[1\]"):
        check_query(SPEC, rows[:, :2], 1)


def test_labels_outside_the_classes_are_named_with_their_nodes() -> None:
    check_labels(SPEC, IDS, torch.tensor([-1, 2]))
    with pytest.raises(ValueError, match=r"labels \[3\] of node_ids \[4\] are not in -1..2"):
        check_labels(SPEC, IDS, torch.tensor([3, 0]))
    with pytest.raises(ValueError, match=r"labels must be int64 of shape \(2,\)"):
        check_labels(SPEC, IDS, torch.tensor([0.0, 1.0]))


@pytest.mark.parametrize("k", [0, 6])
def test_a_query_asks_for_some_of_the_nodes(k: int) -> None:
    with pytest.raises(ValueError, match=f"k = {k} must lie in 1..num_nodes = 5"):
        check_query(SPEC, ROWS, k)


def test_long_lists_are_cut_in_messages() -> None:
    with pytest.raises(ValueError, match=r"\[9, 9, 9, 9, 9, ... \(7 in all\)\]"):
        check_ids(SPEC, torch.tensor([9] * 7))
