"""Compiled loops over rows, and the threads that run them.

Numba's own parallel loops keep a pool that spins beside torch's, must not be entered by two Python
threads at once (a store answers reads during a refresh) and does not survive a fork. The kernels
here release the GIL instead, and ordinary threads call them.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar, cast

import torch
from numba import njit

Function = TypeVar("Function", bound=Callable[..., object])


def compiled(function: Function) -> Function:
    """Compile with numba on first use, without the GIL; IEEE arithmetic in the order written."""
    # Unwrapped: the tests' run-time type checks wrap every function, and cannot be compiled.
    return cast(Function, njit(cache=True, nogil=True)(inspect.unwrap(function)))


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


Task = Callable[[], object]


@contextmanager
def task_threads() -> Iterator[Callable[[Iterable[Task]], None]]:
    """Yield `run(tasks)`, which works off tasks on as many threads as torch would use.

    Meanwhile torch itself uses one thread per call.
    """
    with (
        _one_torch_thread() as num_threads,
        # In each thread too: a new one takes over the count, but its products do not go by it.
        ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):

        def run(tasks: Iterable[Task]) -> None:
            for done in [pool.submit(task) for task in tasks]:
                done.result()

        yield run


@dataclass
class _Inside:
    """How many threads have torch's count at one, and what the first of them had before."""

    threads: int = 0
    count: int = 1


_inside, _lock = _Inside(), threading.Lock()


@contextmanager
def _one_torch_thread() -> Iterator[int]:
    """Set torch's thread count, which every thread has of its own, to one; yields the former one.

    A thread's first count is the last that any thread has set, so one that came while another
    was inside has found 1 and takes over the other's.
    """
    with _lock:
        before = torch.get_num_threads()
        before = _inside.count = max(before, _inside.count) if _inside.threads else before
        _inside.threads += 1
        torch.set_num_threads(1)
    try:
        yield before
    finally:
        with _lock:
            _inside.threads -= 1
            torch.set_num_threads(before)
