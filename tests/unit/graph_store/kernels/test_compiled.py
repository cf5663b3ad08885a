"""Threads of the compiled loops."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from labelmesh.graph_store.kernels.compiled import task_threads


def test_overlapping_threads_keep_their_thread_count() -> None:
    before = torch.get_num_threads()
    entered, may_leave = threading.Event(), threading.Event()

    def other() -> int:
        with task_threads():
            entered.set()
            may_leave.wait(10)
        return torch.get_num_threads()

    try:
        torch.set_num_threads(3)
        with ThreadPoolExecutor(1) as pool:
            with task_threads():
                assert torch.get_num_threads() == 1
                running = pool.submit(other)
                entered.wait(10)
            own = torch.get_num_threads()
            may_leave.set()
            assert (own, running.result()) == (3, 3)
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)
