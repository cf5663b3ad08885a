"""Minima and heaviest entries of sparse rows against loops."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.graph_store.kernels.csr import Csr, coalesce
from labelmesh.graph_store.kernels.row_joins import (
    _at_heaviest_torch,
    _with_most_weight_torch,
    at_heaviest,
    row_minimum,
    with_most_weight,
)

LARGEST = torch.iinfo(torch.int64).max


def random_csr(seed: int) -> Csr:
    """Rows of 0 to 5 entries with few distinct weights."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, 12, (30,), generator=generator)
    cols = torch.randint(0, 15, (30,), generator=generator)
    vals = torch.randint(1, 4, (30,), generator=generator).double()
    return coalesce(rows, cols, vals, 12, 15, "amax")


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_row_minimum(seed: int) -> None:
    csr = random_csr(seed)
    values = torch.randint(-9, 9, (15,), generator=torch.Generator().manual_seed(seed))
    found = row_minimum(csr, values)
    for i in range(12):
        row = values[csr.cols[csr.offsets[i] : csr.offsets[i + 1]]]
        assert found[i] == (row.min() if row.numel() else LARGEST)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_at_heaviest_takes_the_smaller_value_on_ties(seed: int) -> None:
    csr = random_csr(seed)
    values = torch.randint(-2, 5, (15,), generator=torch.Generator().manual_seed(seed))
    values = values.clamp(min=-1)
    expected = []
    for i in range(12):
        entries = range(int(csr.offsets[i]), int(csr.offsets[i + 1]))
        known = [(-float(csr.vals[e]), int(values[csr.cols[e]])) for e in entries]
        known = [pair for pair in known if pair[1] >= 0]
        expected.append(min(known)[1] if known else -1)
    assert at_heaviest(csr, values).tolist() == expected
    assert _at_heaviest_torch(csr, values).tolist() == expected


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_with_most_weight_takes_the_smaller_value_on_ties(seed: int) -> None:
    csr = random_csr(seed)
    values = torch.randint(-1, 4, (15,), generator=torch.Generator().manual_seed(seed))
    expected = []
    for i in range(12):
        votes: dict[int, float] = {}
        for e in range(int(csr.offsets[i]), int(csr.offsets[i + 1])):
            value = int(values[csr.cols[e]])
            if value >= 0:
                votes[value] = votes.get(value, 0.0) + float(csr.vals[e])
        expected.append(
            min((-weight, value) for value, weight in votes.items())[1] if votes else -1
        )
    assert with_most_weight(csr, values, 4).tolist() == expected
    assert _with_most_weight_torch(csr, values, 4).tolist() == expected
