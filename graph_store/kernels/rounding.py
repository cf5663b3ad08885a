"""Rows in a lower precision: less memory, faster products, and a known distance from the rows.

A product of two rounded rows has no rounding errors but those of its float32 sum (11 + 11 bits fit
into 24), so a filter that sees rounded rows is off by the rounding alone: with e_x = |x - x~|,

    | |x~ - y~| - |x - y| | <= e_x + e_y.

To lists with a horizon, whose references may be any points, rounding is only more drift.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float32, Float64, Shaped
from torch import Tensor

from .scaling import key_error, key_errors, power_of_two

Precision = Literal["float32", "tf32", "bfloat16", "float16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("float32", "tf32", "bfloat16", "float16", "int8")
_STORED = {"bfloat16": torch.bfloat16, "float16": torch.float16, "int8": torch.int8}
_LARGEST = {torch.bfloat16: 3e38, torch.float16: 65504.0, torch.int8: 127.0}
# Tensor cores add with a bit or two less than IEEE float32 and truncate.
_TENSOR_CORE_ERROR = 4.0
# Rows that are widened at once.
_CHUNK = 1 << 16


@dataclass(frozen=True)
class Rounded:
    """Rows as they are stored; what they stand for is `values` times `unit`."""

    values: Shaped[Tensor, "n D"]
    unit: float
    precision: Precision

    def widen(self) -> Float32[Tensor, "n D"]:
        """The points that the rows stand for, in float32 and exact."""
        values = self.values.to(torch.float32)
        return values if self.unit == 1.0 else values * self.unit


def default_precision(device: torch.device) -> Precision:
    """float16 where there are tensor cores, else float32.

    float16 rows in a unit near their largest entry have the 11 bits of TF32 at half the memory and
    twice the speed, and eight times the accuracy of bfloat16; and unlike TF32 they need no switch
    that holds for the whole process. Where it is too coarse, callers fall back to float32.
    """
    return "float16" if device.type == "cuda" else "float32"


def choose_unit(largest: float, precision: Precision) -> float:
    """The unit for rows with entries up to `largest`: a power of two, so scaling is exact."""
    if precision in ("float32", "tf32"):
        return 1.0
    return 1.0 / power_of_two(largest) / (128.0 if precision == "int8" else 1.0)


def round_to(
    rows: Float32[Tensor, "n D"], precision: Precision, unit: float | None = None
) -> Rounded:
    """The rows in a lower precision; entries beyond its range become the largest in range.

    Args:
        unit: One for the whole bank, see `choose_unit`; None: that of these rows.
    """
    if precision == "float32":
        return Rounded(rows, 1.0, precision)
    if precision == "tf32":
        bits = rows.contiguous().view(torch.int32)
        to_even = 0xFFF + ((bits >> 13) & 1)
        return Rounded(((bits + to_even) & ~0x1FFF).view(torch.float32), 1.0, precision)
    if unit is None:
        unit = choose_unit(float(rows.abs().max()) if rows.numel() else 0.0, precision)
    dtype = _STORED[precision]
    values = torch.empty(rows.shape, dtype=dtype, device=rows.device)
    for start in range(0, rows.shape[0], _CHUNK):
        part = (rows[start : start + _CHUNK] / unit).clamp_(-_LARGEST[dtype], _LARGEST[dtype])
        values[start : start + _CHUNK] = part.round_() if precision == "int8" else part
    return Rounded(values, unit, precision)


def half_lengths(rounded: Rounded) -> Float32[Tensor, " n"]:
    """|x|^2/2 of the points that the rows stand for."""
    out = torch.empty(rounded.values.shape[0], device=rounded.values.device)
    for start in range(0, len(out), _CHUNK):
        points = _part(rounded, start).widen()
        out[start : start + _CHUNK] = torch.linalg.vector_norm(points, dim=1).square() / 2
    return out


def rounding_error(rows: Float32[Tensor, "n D"], rounded: Rounded) -> Float64[Tensor, " n"]:
    """Distance of every row from what stands for it, rounded up."""
    out = torch.empty(rows.shape[0], dtype=torch.float64, device=rows.device)
    for start in range(0, len(out), _CHUNK):
        points = _part(rounded, start).widen().to(torch.float64)
        gap = rows[start : start + _CHUNK].to(torch.float64) - points
        out[start : start + _CHUNK] = torch.linalg.vector_norm(gap, dim=1) * (1 + 1e-9)
    return out


def product_error(dim: int, longest: float, precision: Precision) -> float:
    """How far a key computed from rounded rows can be from the key of the points they stand for."""
    error = key_error(dim, longest)
    return error if precision == "float32" else _TENSOR_CORE_ERROR * error


def product_errors(
    half: Float32[Tensor, " m"], keys: Float32[Tensor, " m"], dim: int, precision: Precision
) -> Float32[Tensor, " m"]:
    """`scaling.key_errors` of keys computed from rounded rows, rounded up."""
    errors = key_errors(half, keys, dim)
    if precision != "float32":
        errors = errors * _TENSOR_CORE_ERROR
    return (errors * (1 + 1e-6)).to(torch.float32)


def _part(rounded: Rounded, start: int) -> Rounded:
    return Rounded(rounded.values[start : start + _CHUNK], rounded.unit, rounded.precision)
