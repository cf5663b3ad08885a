"""Which rows count as far movers: the split that leaves the fewest rows to be scanned.

Row i escapes a scan iff drift_i <= theta < limit_i: it has not moved far itself, and nothing that
is not scanned has moved so far that it could have come near. So the best theta is a point that
stabs the most intervals [drift_i, limit_i); any other is valid too, only dearer.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float64
from torch import Tensor


def best_threshold(drift: Float64[Tensor, " n"], limit: Float64[Tensor, " n"]) -> float:
    """The theta >= 0 that the most intervals [drift_i, limit_i) contain; the least one of these.

    Cost:
        One sort of the ends: O(n log n).
    """
    begin, end = drift.cpu().numpy(), limit.cpu().numpy()
    is_open = begin < end
    starts, ends = np.sort(begin[is_open]), np.sort(end[is_open])
    if not len(starts):
        return 0.0
    # A stab is best at the start of an interval: later, others may have ended. Of equal starts
    # only the last counts all of them, and so wins.
    begun = np.arange(1, len(starts) + 1)
    stabbed = begun - np.searchsorted(ends, starts, side="right")
    return float(starts[int(stabbed.argmax())])


def num_scanned(drift: Float64[Tensor, " n"], limit: Float64[Tensor, " n"], theta: float) -> int:
    """How many rows must be scanned at some theta, before entrants help."""
    escapes = (drift <= theta).logical_and(limit > theta)
    return int((~escapes).sum())
