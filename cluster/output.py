"""How commands answer: one JSON object for programs, a table for people, one sentence on errors."""

from __future__ import annotations

import dis
import json
import math
import os
import re
import sys
import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..datasets.masking import masked_text
from ..trainers.outcome import RunPaused

if TYPE_CHECKING:
    from rich.console import Console

INPUT_ERROR = 2
RUN_FAILED = 1

_PACKAGE = __name__.split(".")[0]
_UNBOUNDED = 100_000
# All but colors, which Ray's traces have.
_CONTROL = re.compile(
    r"[\x00-\x08\x0b-\x1a\x1c-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]|\x1b(?!\[[\d;]*m)"
)
_BAD_PATH = (FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError)


def print_json(result: Mapping[str, Any]) -> None:
    """Write the result to stdout as one JSON object; numbers that JSON lacks become null."""
    sys.stdout.write(json.dumps(_plain(result), indent=2, default=str) + "\n")


def print_facts(facts: Mapping[str, Any], *, title: str = "") -> None:
    """Write name and value pairs to stdout, one per line."""
    print_table(["", ""], [[name, value] for name, value in facts.items()], title=title)


def print_table(header: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str = "") -> None:
    """Write a table to stdout; without a header row where all names are empty."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=any(header), header_style="bold")
    for column, name in enumerate(header):
        numeric = bool(rows) and all(isinstance(row[column], int | float) for row in rows)
        table.add_column(name, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(shown(cell)) for cell in row))
    console = wide_console()
    if title:
        console.print(Text(title, style="bold"))
    console.print(table)


def wide_console() -> Console:
    """Stdout. A pipe has no width; a table that is cut at 80 columns cannot be read by programs."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else _UNBOUNDED)


def shown(value: Any) -> str:
    """A value as people read it: four significant digits, lists in one line, `-` for nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown(part)}" for name, part in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(shown(part) for part in value) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.0f}" if value.is_integer() else f"{value:.4g}"
    return printable(str(value))


def printable(text: str) -> str:
    """The text without control characters, by which names in a file could write to a terminal's
    title, clipboard or past lines; shown as `\\x1b`. Line breaks and tabs stay."""
    return _CONTROL.sub(lambda found: repr(found[0])[1:-1], text)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: `6:10`, `1:06:10`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def explain(error: BaseException) -> int:
    """Write what went wrong to stderr and return the exit code.

    Bad input gets one sentence and code 2; a run that was stopped gets one and code 1; anything
    else is a failed run: the traceback, then one sentence, and code 1. With LABELMESH_DEBUG set
    every error shows its traceback.
    """
    is_input, is_pause = is_input_error(error), isinstance(error, RunPaused)
    if not (is_input or is_pause) or os.environ.get("LABELMESH_DEBUG"):
        trace = "".join(traceback.format_exception(error))
        sys.stderr.write(printable(masked_text(trace)))
    sentence = printable(masked_text(_sentence(error)))
    told = "error: " if is_input else "" if is_pause else "the run failed: "
    sys.stderr.write(f"{told}{sentence}\n")
    return INPUT_ERROR if is_input else RUN_FAILED


def is_input_error(error: BaseException) -> bool:
    """Whether the user can mend it: a path that is wrong, or a ValueError that we raised.

    A ValueError out of another library, or one that Ray brought back from a worker, is a run that
    failed: its message says nothing about what to do.
    """
    if any(kind.__module__.split(".")[0] == "ray" for kind in type(error).__mro__):
        return False
    if isinstance(error, _BAD_PATH):
        return True
    return isinstance(error, ValueError) and _was_raised_here(error)


def _was_raised_here(error: BaseException) -> bool:
    """Whether a `raise` statement of this package raised it. Functions written in C leave no frame,
    so the module is not enough: what the frame was doing is looked at, too."""
    trace = error.__traceback__
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    frame = trace.tb_frame
    is_ours = str(frame.f_globals.get("__name__", "")).split(".")[0] == _PACKAGE
    return is_ours and frame.f_code.co_code[trace.tb_lasti] == dis.opmap["RAISE_VARARGS"]


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename:
        reason = error.strerror or type(error).__name__
        return f"{error.filename}: {reason[0].lower()}{reason[1:]}"
    text = " ".join(str(error).split())
    if not text:
        return type(error).__name__
    return f"no such file: {text}" if isinstance(error, FileNotFoundError) else text


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
