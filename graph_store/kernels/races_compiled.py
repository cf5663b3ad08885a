"""Compiled loops of k-means++; see `races` and `whole_rows`."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import TypeVar, cast

import numpy as np
from numba import njit
from numpy.typing import NDArray

from .compiled import compiled
from .refine_compiled import mix

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
I64 = NDArray[np.int64]
U64 = NDArray[np.uint64]
Function = TypeVar("Function", bound=Callable[..., object])

LOG_2 = 0.6931471805599453
# Terms of the series in `exponential`: off by less than 1e-12 of log 2.
LAST_TERM = 23
WORD = 26
_MASK = (1 << WORD) - 1


def _in_any_order(function: Function) -> Function:
    """`compiled`, for sums that are exact in any order."""
    options = {"cache": True, "nogil": True, "fastmath": {"reassoc", "contract"}}
    return cast(Function, njit(**options)(inspect.unwrap(function)))


@compiled
def exponential(uniform: float) -> float:
    """`races.exponentials` of one number, operation by operation the same."""
    fraction, exponent = math.frexp(uniform)
    s = (1.0 - fraction) / (1.0 + fraction)
    square, total = s * s, 0.0
    for term in range(LAST_TERM, 0, -2):
        total = total * square + 1.0 / term
    return 2.0 * s * total - exponent * LOG_2


@compiled
def race(ids: I64, weights: F64, salts: U64, start: int, keys: F64, at: I64) -> None:
    """Find who is first in each of some races; of equals, the lowest id.

    Args:
        start: Position of the first of these rows.
        keys, at: Best so far (inf and -1), and where; written.
    """
    winner = np.full(keys.shape[0], -1, np.int64)
    for i in range(ids.shape[0]):
        weight = weights[i]
        if weight <= 0.0:
            continue
        for t in range(keys.shape[0]):
            number = mix(np.uint64(ids[i]) ^ salts[t]) >> np.uint64(12)
            uniform = (np.float64(number) + 0.5) * 2.0**-52
            # -log u >= 1 - u; the logarithm is seldom needed.
            if (1.0 - uniform) * (1.0 - 1e-9) > keys[t] * weight:
                continue
            key = exponential(uniform) / weight
            if key < keys[t] or (key == keys[t] and ids[i] < winner[t]):
                keys[t], at[t], winner[t] = key, start + i, ids[i]


@_in_any_order
def offer(
    rows: F32,
    squares: F64,
    nearest: F64,
    points: F64,
    point_squares: F64,
    out: F64,
    totals: I64,
) -> None:
    """Squared distances to the nearest center if each of some points became one, and their sums.

    Args:
        out: A column per point.
        totals: A row per point: two words of WORD bits; added to.
    """
    for i in range(rows.shape[0]):
        for t in range(points.shape[0]):
            product = 0.0
            for j in range(rows.shape[1]):
                product += np.float64(rows[i, j]) * points[t, j]
            square = min(squares[i] + point_squares[t] - 2.0 * product, nearest[i])
            out[i, t] = square
            whole = np.int64(square)
            totals[t, 0] += whole >> WORD
            totals[t, 1] += whole & _MASK
