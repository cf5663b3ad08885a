"""Stages: lines where there is no terminal, and only for long jobs."""

from __future__ import annotations

import io

import pytest
from labelmesh.cluster.stages import Stages
from rich.console import Console


def test_lines_say_when_a_stage_begins() -> None:
    out, now = io.StringIO(), iter([10.0, 10.0, 75.25])
    stages = Stages(console=Console(file=out), clock=lambda: next(now))
    with stages:
        stages.begin("reading [x]")
        stages.begin("solving")
    assert out.getvalue() == "   0.0 s  reading [x]\n  65.2 s  solving\n"


def test_short_jobs_say_nothing() -> None:
    out = io.StringIO()
    with Stages(is_long=False, console=Console(file=out)) as stages:
        stages.begin("solving")
    assert out.getvalue() == ""


def test_the_terminal_is_restored_after_an_error() -> None:
    out = io.StringIO()
    stages = Stages(is_long=False, console=Console(file=out, force_terminal=True, width=60))

    def fail() -> None:
        with stages:
            stages.begin("solving")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert "solving" in out.getvalue()
    # The cursor is shown again.
    assert "\x1b[?25h" in out.getvalue()
