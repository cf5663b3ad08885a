"""Who solves the chains of a graph sweep: threads of this process, or tasks of a Ray cluster.

Threads read one copy of the snapshot and need no start; the solvers' loops hold no GIL. Ray is for
sweeps that several machines share: the snapshot is put into the object store once, and tasks of one
machine read it in place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial

import torch

from .graph_params import Params
from .graph_points import Problem, solve_chain
from .points import Point

Chains = Sequence[tuple[Params, ...]]


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

    shared = ray.put(problem)
    task = ray.remote(partial(_solve_on_one_core))
    waiting = {task.remote(shared, chain): number for number, chain in enumerate(chains)}
    while waiting:
        (done,), _ = ray.wait(list(waiting))
        yield waiting.pop(done), ray.get(done)


def _solve_on_one_core(problem: Problem, chain: tuple[Params, ...]) -> list[Point]:
    torch.set_num_threads(1)
    return solve_chain(problem, chain)


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
