"""Runs `device_*_cases` in a process of their own: their device is made for a whole process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
CASES = (
    "device_graph_cases.py",
    "device_solver_cases.py",
    "device_few_labels_cases.py",
    "device_kmeans_cases.py",
)


def test_on_a_device_that_is_not_the_cpu() -> None:
    paths = [str(Path(__file__).with_name(name)) for name in CASES]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *paths]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout or "[100%]" in done.stdout
