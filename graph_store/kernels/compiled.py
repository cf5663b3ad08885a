"""Compiled loops over rows, and the threads that run them.

Numba's own parallel loops keep a pool that spins beside torch's, must not be entered by two Python
threads at once (a store answers reads during a refresh) and does not survive a fork. The kernels
here release the GIL instead, and ordinary threads call them.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TypeVar, cast

import torch
from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile with numba on first use, without the GIL; IEEE arithmetic in the order written."""
    return cast(Function, njit(cache=True, nogil=True)(function))


def split_rows(num_rows: int, work: int, min_work: int = 200_000) -> list[tuple[int, int]]:
    """Row ranges for torch's number of threads; one range where `work` is not worth a thread."""
    parts = max(1, min(torch.get_num_threads(), num_rows, work // min_work))
    return list(pairwise(num_rows * part // parts for part in range(parts + 1)))


def for_each_range(call: Callable[[int, int], object], ranges: list[tuple[int, int]]) -> None:
    """Call `call(start, stop)` for every range, each on a thread of its own."""
    if len(ranges) == 1:
        call(*ranges[0])
        return
    with ThreadPoolExecutor(len(ranges)) as pool:
        for done in [pool.submit(call, *part) for part in ranges]:
            done.result()
