"""Runs files of test cases in a process of their own: a device is made for a whole process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

# Shapes are not checked there: a check is an operation, and each one of the device that
# `other_device.py` makes is slow. They are the CPU's shapes, which all other tests check.
OPTIONS = "addopts=--import-mode=importlib --strict-markers"


def run_cases(paths: Sequence[Path]) -> None:
    """Fails with everything that the other pytest printed."""
    command = [sys.executable, "-m", "pytest", "-o", OPTIONS, "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, *map(str, paths)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "passed" in done.stdout
