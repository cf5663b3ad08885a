"""What a run says while it runs: a live table on a terminal, plain lines everywhere else.

The driver hands a `Progress` to the training loop, which calls `update` with flat events::

    {"kind": "step", "epoch": 3, "num_epochs": 40, "step": 12, "num_steps": 80,
     "loss": 0.41, "samples_per_s": 1240.0, "eta_s": 75.0}
    {"kind": "round", "round": 3, "epoch": 3, "searched": 1437, "coverage": 0.98,
     "pseudo_accuracy": 0.93, "seconds": 1.2}
    {"kind": "epoch", "epoch": 3, "loss": 0.39}
    {"kind": "eval", "epoch": 3, "split": "val", "accuracy": 0.94}

Only `kind` is required. Epochs, rounds and steps are numbered from 0, as they are in the files of
a run. Everything goes to stderr: stdout belongs to results.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

Event = Mapping[str, Any]

_ROWS = 10
"""Epochs that stay in the live table: it must fit a small terminal."""


class Progress:
    """Renders events; a context manager that restores the terminal however the run ends.

    Args:
        title: Name of the run.
        console: Where to write; a live table if it is a terminal, lines if not.
        seconds_between_lines: Steps are printed at most this often where there is no terminal;
            rounds, epochs and evaluations always.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        title: str,
        *,
        console: Console | None = None,
        seconds_between_lines: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._title = title
        self._console = console or Console(stderr=True)
        self._pause_s = seconds_between_lines
        self._clock = clock
        self._last_line_s = clock()
        self._now: dict[str, Any] = {}
        self._epochs: deque[dict[str, Any]] = deque(maxlen=_ROWS)
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live = Live(self.render(), console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.update(self.render(), refresh=True)
            self._live.stop()
            self._live = None

    def update(self, event: Event) -> None:
        """Take in one event. Unknown kinds and keys are ignored: progress never stops a run."""
        self._remember(event)
        if self._live is not None:
            self._live.update(self.render())
        elif self._is_due(event):
            self._last_line_s = self._clock()
            self._console.print(event_line(event), highlight=False, markup=False, soft_wrap=True)

    def render(self) -> RenderableType:
        """The live table: where the run is, then the last epochs."""
        return Group(self._head(), self._history())

    def _remember(self, event: Event) -> None:
        self._now.update(event)
        epoch = event.get("epoch")
        if event.get("kind") == "step" or epoch is None:
            return
        row = next((r for r in self._epochs if r["epoch"] == epoch), None)
        if row is None:
            row = {}
            self._epochs.append(row)
        row.update(event)
        if event.get("kind") == "eval" and "accuracy" in event:
            row[f"{event.get('split', 'val')}/accuracy"] = event["accuracy"]

    def _is_due(self, event: Event) -> bool:
        if event.get("kind") != "step":
            return event.get("kind") in {"round", "epoch", "eval"}
        return self._clock() - self._last_line_s >= self._pause_s

    def _head(self) -> RenderableType:
        now = self._now
        head = Table.grid(padding=(0, 2))
        cells: list[RenderableType] = [Text(self._title, style="bold")]
        if "epoch" in now:
            cells.append(Text(f"epoch {_count(now, 'epoch', 'num_epochs')}"))
        if now.get("num_steps"):
            cells.append(Text(f"step {_count(now, 'step', 'num_steps')}"))
            share = (int(now.get("step", 0)) + 1) / int(now["num_steps"])
            cells.append(ProgressBar(total=1.0, completed=min(1.0, share), width=20))
        for key, shown in (("loss", "loss {}"), ("samples_per_s", "{}/s"), ("eta_s", "{} left")):
            if now.get(key) is not None:
                cells.append(Text(shown.format(_value(key, now[key]))))
        head.add_row(*cells)
        return head

    def _history(self) -> RenderableType:
        columns = {
            "epoch": "epoch",
            "round": "round",
            "loss": "loss",
            "searched": "searched",
            "coverage": "coverage",
            "pseudo_accuracy": "pseudo-labels right",
            "val/accuracy": "val accuracy",
            "test/accuracy": "test accuracy",
        }
        present = [key for key in columns if any(r.get(key) is not None for r in self._epochs)]
        table = Table(box=None, pad_edge=False, header_style="dim")
        for key in present:
            table.add_column(columns[key], justify="right")
        for row in self._epochs:
            table.add_row(*(_value(key, row.get(key)) for key in present))
        return table


def event_line(event: Event) -> str:
    """One event as one line, for logs: `epoch 4/40  step 13/80  loss 0.4123`."""
    parts: list[str] = []
    if event.get("kind") == "round" and "round" in event:
        parts.append(f"round {event['round']}")
    if "epoch" in event:
        parts.append(f"epoch {_count(event, 'epoch', 'num_epochs')}")
    if "step" in event:
        parts.append(f"step {_count(event, 'step', 'num_steps')}")
    if event.get("kind") == "eval":
        parts.append(str(event.get("split", "val")))
    names = {
        "loss": "loss {}",
        "searched": "searched {}",
        "coverage": "coverage {}",
        "pseudo_accuracy": "pseudo-labels right {}",
        "accuracy": "accuracy {}",
        "samples_per_s": "{} samples/s",
        "seconds": "took {}",
        "eta_s": "{} left",
    }
    for key, shown in names.items():
        if event.get(key) is not None:
            parts.append(shown.format(_value(key, event[key])))
    return "  ".join(parts)


def _count(event: Event, key: str, total: str) -> str:
    """Position counted from 1, as people do, with the total where it is known."""
    position = str(int(event[key]) + 1)
    return f"{position}/{event[total]}" if event.get(total) else position


def _value(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key in {"coverage", "accuracy", "pseudo_accuracy"} or key.endswith("/accuracy"):
        return f"{100 * float(value):.1f} %"
    if key in {"eta_s", "seconds"}:
        minutes, seconds = divmod(round(float(value)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    if key == "epoch":
        return str(int(value) + 1)
    if key == "loss":
        return f"{float(value):.4f}"
    return f"{float(value):,.0f}"
