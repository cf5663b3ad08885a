"""Independent random streams from one seed."""

from __future__ import annotations

import zlib

import numpy as np


def generator(seed: int, stream: str, *counters: int) -> np.random.Generator:
    """A generator for (seed, stream, counters): the same arguments, the same draws.

    Raises:
        ValueError: The seed is negative.
    """
    if seed < 0:
        raise ValueError(f"seed = {seed}: must be 0 or more")
    return np.random.default_rng([seed, zlib.crc32(stream.encode()), *counters])
