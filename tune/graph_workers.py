"""Who solves the chains of a graph sweep: threads of this process, or tasks of a Ray cluster.

Threads read one copy of the snapshot and need no start; the solvers' loops hold no GIL. Ray is for
sweeps that several machines share: the snapshot is put into the object store once, and tasks of one
machine read it in place.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from .graph_params import Params
from .graph_points import Problem, Snapshot, solve_chain
from .points import Point

Chains = Sequence[tuple[Params, ...]]
_COLUMNS = ("neighbor_ids", "similarity", "distances", "labels")


def on_threads(
    problem: Problem, chains: Chains, *, num_workers: int | None = None
) -> Iterator[tuple[int, list[Point]]]:
    """Solve chains on threads; yields the number of a chain and its points as they are done.

    Args:
        num_workers: Threads; None: one per core.
    """
    workers = min(num_workers or _num_cores(), max(1, len(chains)))
    with (
        _one_thread_per_product(),
        ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        waiting = {pool.submit(solve_chain, problem, c): i for i, c in enumerate(chains)}
        for done in as_completed(waiting):
            yield waiting[done], done.result()


def on_ray(problem: Problem, chains: Chains) -> Iterator[tuple[int, list[Point]]]:
    """Solve chains as tasks of the Ray cluster that this process has joined, one core each."""
    import ray

    snapshot = problem.snapshot
    # Arrays are read where the object store has them; tensors would be copied by every task.
    columns = tuple(getattr(snapshot, name).numpy() for name in _COLUMNS)
    shared = ray.put(columns)
    rest = ray.put(replace(problem, snapshot=_with_columns(snapshot, [c[:0] for c in columns])))
    task = ray.remote(_solve_on_one_core)
    waiting = {task.remote(rest, shared, chain): number for number, chain in enumerate(chains)}
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        yield waiting.pop(done), ray.get(done)


def _solve_on_one_core(
    problem: Problem, columns: tuple[Any, ...], chain: tuple[Params, ...]
) -> list[Point]:
    torch.set_num_threads(1)
    return solve_chain(replace(problem, snapshot=_with_columns(problem.snapshot, columns)), chain)


def _with_columns(snapshot: Snapshot, columns: Sequence[Any]) -> Snapshot:
    with warnings.catch_warnings():
        # Memory of the object store is read-only; a graph is never written to.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        tensors: dict[str, Any] = {n: torch.from_numpy(c) for n, c in zip(_COLUMNS, columns)}
    return replace(snapshot, **tensors)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _one_thread_per_product() -> Iterator[None]:
    """A new thread takes over the last count that any thread has set; it is put back after."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
