"""Runs `device_*_cases` in a process of their own: their device is made for a whole process."""

from __future__ import annotations

from pathlib import Path

from ..other_process import run_cases

CASES = (
    "device_graph_cases.py",
    "device_solver_cases.py",
    "device_few_labels_cases.py",
    "device_kmeans_cases.py",
)


def test_on_a_device_that_is_not_the_cpu() -> None:
    run_cases([Path(__file__).with_name(name) for name in CASES])
