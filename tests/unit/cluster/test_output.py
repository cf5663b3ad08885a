"""Results and errors of the command line."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from labelmesh.cluster import output, progress
from labelmesh.trainers.config import ConfigError, load_config
from labelmesh.trainers.outcome import RunPaused


def caught(action: Callable[[], Any]) -> Exception:
    try:
        action()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def fail(error: Exception) -> None:
    raise error


def test_our_value_error_is_one_sentence_and_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    error = caught(lambda: load_config("no-such-config"))
    assert isinstance(error, ConfigError)
    assert output.explain(error) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: no configuration 'no-such-config'")
    assert err.count("\n") == 1


def test_a_run_that_was_stopped_is_no_failure_to_look_into(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert output.explain(caught(lambda: fail(RunPaused("stopped by SIGTERM: ...")))) == 1
    assert capsys.readouterr() == ("", "stopped by SIGTERM: ...\n")


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert output.explain(caught(lambda: Path("/nowhere/x.npz").read_bytes())) == 2
    assert capsys.readouterr().err == "error: /nowhere/x.npz: no such file or directory\n"


@pytest.mark.parametrize(
    "error",
    [RuntimeError("CUDA out of memory"), KeyError("loss"), ValueError("raised by somebody else")],
)
def test_everything_else_is_a_failed_run(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    assert output.explain(caught(lambda: fail(error))) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("the run failed: ")


def test_a_value_error_of_a_builtin_in_our_code_is_a_failed_run() -> None:
    error = caught(lambda: progress._shown("step", b"x"))  # float(b"x") raises, not we
    assert isinstance(error, ValueError)
    assert not output.is_input_error(error)


def test_a_value_error_that_a_worker_raised_is_a_failed_run() -> None:
    kind = type("RayTaskError", (ValueError,), {"__module__": "ray.exceptions"})
    error = caught(lambda: load_config("no-such-config"))
    assert output.is_input_error(error)
    assert not output.is_input_error(kind("x").with_traceback(error.__traceback__))


def test_debug_shows_the_traceback_of_input_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("LABELMESH_DEBUG", "1")
    assert output.explain(caught(lambda: load_config("no-such-config"))) == 2
    assert "Traceback" in capsys.readouterr().err


def test_json_has_no_nan(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({"a": math.nan, "b": {"c": [1.5, math.inf]}, 3: "x"})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": {"c": [1.5, None]}, "3": "x"}


def test_a_table_in_a_pipe_is_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(["name", "n"], [["x" * 300, 1], ["[red]", 22]])
    lines = capsys.readouterr().out.splitlines()
    assert "x" * 300 in lines[1]
    assert lines[2].startswith("[red]")
    assert sys.stdout.isatty() is False


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (math.nan, "-"),
        (0.123456, "0.1235"),
        (True, "yes"),
        (7, "7"),
        ("a", "a"),
        ((1, 8, 8), "1, 8, 8"),
        ({"train": 5, "test": [1, 2]}, "train 5, test 1, 2"),
        ({}, "-"),
    ],
)
def test_values_as_people_read_them(value: Any, text: str) -> None:
    assert output.shown(value) == text
