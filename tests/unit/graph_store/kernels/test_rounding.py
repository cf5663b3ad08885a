"""Rounded rows: how far they are from the rows, against their definition."""

from __future__ import annotations

import pytest
import torch
from labelmesh.graph_store.kernels.rounding import (
    PRECISIONS,
    Precision,
    choose_unit,
    default_precision,
    half_lengths,
    round_to,
    rounding_error,
)
from torch import Tensor


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("precision", "bits"), [("tf32", 11), ("float16", 11), ("bfloat16", 8)])
def test_relative_error_is_half_a_unit_in_the_last_place(precision: Precision, bits: int) -> None:
    rows = randn(200, 30)
    rounded = round_to(rows, precision).widen()
    assert ((rounded - rows).abs() <= rows.abs() * 2.0**-bits + 2e-7).all()
    assert ((rounded - rows).abs() > rows.abs() * 2.0 ** -(bits + 1)).any()


def test_tf32_keeps_ten_bits_and_rounds_to_even() -> None:
    ulp = 2.0**-10
    rows = torch.tensor([[1 + ulp, 1 + ulp / 2, 1 + 1.5 * ulp, -1 - 0.6 * ulp, 0.0, 1e-30]])
    expected = [1 + ulp, 1.0, 1 + 2 * ulp, -1 - ulp, 0.0]
    assert round_to(rows, "tf32").widen()[0, :5].tolist() == expected
    again = round_to(rows, "tf32").widen()
    assert torch.equal(round_to(again, "tf32").widen(), again)


def test_int8_is_off_by_half_a_step() -> None:
    rows = randn(100, 9)
    rounded = round_to(rows, "int8")
    assert rounded.values.dtype == torch.int8
    step = rounded.unit
    assert float(rows.abs().max()) <= 128 * step
    assert (
        (rounded.widen() - rows).abs() <= torch.where(rows.abs() > 127 * step, 1, 0.5) * step
    ).all()


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("size", [1e-30, 1e-3, 1.0, 1e30])
def test_error_is_the_distance_from_the_row(precision: Precision, size: float) -> None:
    rows = size * randn(50, 7)
    rounded = round_to(rows, precision)
    exact = torch.linalg.vector_norm(rows.double() - rounded.widen().double(), dim=1)
    assert torch.allclose(rounding_error(rows, rounded), exact, rtol=1e-8, atol=0)
    assert (rounding_error(rows, rounded) >= exact).all()
    largest = float(rows.abs().max())
    assert float(exact.max()) <= 7**0.5 * largest * 2.0**-7
    half = rounded.widen().double().square().sum(1) / 2
    if 1e-18 < size < 1e18:  # squares are in float32's range
        assert torch.allclose(half_lengths(rounded).double(), half, rtol=1e-5)


def test_rows_beyond_the_unit_are_clamped_and_say_so() -> None:
    rows = torch.tensor([[1.0, 2.0], [1e6, 0.0]])
    for precision, most in (("float16", 65504.0), ("int8", 127.0)):
        unit = choose_unit(2.0, precision)
        rounded = round_to(rows, precision, unit)
        assert rounded.widen()[1, 0] == most * unit
        assert float(rounding_error(rows, rounded)[1]) == pytest.approx(1e6 - most * unit)


def test_float32_is_the_rows_themselves() -> None:
    rows = randn(4, 3)
    assert round_to(rows, "float32").values is rows


def test_default_is_float16_where_there_are_tensor_cores() -> None:
    assert default_precision(torch.device("cuda")) == "float16"
    assert default_precision(torch.device("cpu")) == "float32"
