"""Compiled loops over single rows; see `rows`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .compiled import compiled

F32 = NDArray[np.float32]
Rows = NDArray[np.float32] | NDArray[np.float64]


@compiled
def normalize(x: Rows, out: F32) -> None:
    """`rows.normalize_rows`, operation by operation the same."""
    dim = x.shape[1]
    part, terms = np.empty(dim, np.float64), np.empty(max(1, dim), np.float64)
    for i in range(x.shape[0]):
        largest, has_nan = 0.0, False
        for j in range(dim):
            part[j] = x[i, j]
            has_nan |= part[j] != part[j]
            largest = max(largest, abs(part[j]))
        scale = largest if largest > 0 and not has_nan else 1.0
        terms[0] = 0.0
        for j in range(dim):
            part[j] /= scale
            terms[j] = part[j] * part[j]
        width = dim
        while width > 1:
            half = (width + 1) // 2
            for j in range(width - half):
                terms[j] += terms[half + j]
            width = half
        length = np.sqrt(terms[0])
        divisor = length if length > 0 else 1.0
        for j in range(dim):
            out[i, j] = part[j] / divisor
