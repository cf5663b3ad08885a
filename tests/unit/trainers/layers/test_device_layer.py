"""Runs `device_layer_cases` in a process of its own: its device is made for a whole process."""

from __future__ import annotations

from pathlib import Path

from ...other_process import run_cases


def test_on_a_device_that_is_not_the_cpu() -> None:
    run_cases([Path(__file__).with_name("device_layer_cases.py")])
