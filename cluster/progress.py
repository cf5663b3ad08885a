"""What a run says while it runs: a live table on a terminal, plain lines everywhere else.

`Progress.update` takes the records that the training loop writes into the run's files, and the
`start` record before them::

    {"kind": "start", "epochs": 40, "num_steps": 3200, "num_nodes": 1437, "num_labeled": 40}
    {"kind": "train", "epoch": 3, "step": 260, "loss": 0.41, "samples_per_s": 1240.0}
    {"kind": "round", "round": 3, "epoch": 3, "searched": 1437, "coverage": 0.98}
    {"kind": "eval", "epoch": 4, "split": "val", "accuracy": 0.94}
    {"kind": "waiting", "trainers": 2, "shards": 2}
    {"kind": "skipped", "checkpoint": "epoch-0003", "reason": "model.pt is missing"}

`step` and the `epoch` of an evaluation count what is done; the `epoch` of steps and rounds is the
one they belong to, from 0. Records of the supervised baseline carry `"baseline": True`. Everything
goes to stderr: stdout belongs to results.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..trainers.run_status import Pace
from .live_display import LiveDisplay
from .output import duration

Event = Mapping[str, Any]

_ROWS = 10
"""Epochs that stay in the live table: it must fit a small terminal."""

_COLUMNS = {
    "row": "epoch",
    "round": "round",
    "loss": "loss",
    "searched": "searched",
    "coverage": "coverage",
    "pseudo_accuracy": "pseudo-labels right",
    "val": "validation",
    "test": "test",
}
_NOTICES = {
    "waiting": "waiting until the cluster has room",
    "pausing": "pausing",
    "lost": "going on from the last checkpoint",
    "skipped": "a damaged checkpoint is passed over",
}
_SHOWN = frozenset({"train", "round", "eval"})
_SHARES = frozenset({"coverage", "pseudo_accuracy", "accuracy", "val", "test"})


class Progress(LiveDisplay):
    """Renders a run's records; a context manager that restores the terminal however it ends.

    Args:
        title: Name of the run.
        console: Where to write; a live table if it is a terminal, lines if not.
        seconds_between_lines: Steps are printed at most this often where there is no terminal;
            everything else always.
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
        super().__init__(console)
        self._title = title
        self._pause_s = seconds_between_lines
        self._clock = clock
        self._last_line_s = clock()
        self._now: dict[str, Any] = {}
        self._total: dict[str, int] = {}
        self._pace: Pace | None = None
        self._rows: deque[dict[str, Any]] = deque(maxlen=_ROWS)

    def update(self, event: Event) -> None:
        """Take in one record. Unknown kinds and keys are ignored: progress never stops a run."""
        self._remember(event)
        if self.is_live and event.get("kind") not in _NOTICES:
            self.redraw()
        elif self.is_live or self._is_due(event):
            self._last_line_s = self._clock()
            self.print_line(self.line(event))

    @property
    def seconds_left(self) -> float | None:
        """Time to the last step at the mean speed so far; None before two steps were seen."""
        step, last = self._now.get("step"), self._total.get("num_steps")
        if self._pace is None or step is None or last is None:
            return None
        return self._pace.seconds_left(self._clock(), int(step), last)

    def line(self, event: Event) -> str:
        """One record as one line: `epoch 4/40  step 260/3200  loss 0.4123  1,240 samples/s`."""
        kind = event.get("kind")
        if kind == "start":
            return (
                f"{self._title}: {_shown('num_nodes', event.get('num_nodes'))} nodes, "
                f"{_shown('num_labeled', event.get('num_labeled'))} labeled, "
                f"{event.get('epochs')} epochs, {_shown('num_steps', event.get('num_steps'))} steps"
            )
        if kind in _NOTICES:
            why = f": {event['reason']}" if event.get("reason") else ""
            if not why and kind == "waiting":
                why = f" for {event.get('trainers')} trainers and {event.get('shards')} shards"
            return f"{self._title}: {_NOTICES[str(kind)]}{why}"
        parts = ["baseline"] if event.get("baseline") else []
        if kind == "round":
            parts.append(f"round {event.get('round')}")
        elif kind == "eval":
            parts.append(f"{event.get('split')} accuracy {_shown('accuracy', event['accuracy'])}")
        elif not event.get("baseline"):
            parts.append(self._position(event))
        else:
            parts.append(f"step {event.get('step')}")
        for key, shown in (
            ("loss", "loss {}"),
            ("searched", "searched {}"),
            ("coverage", "coverage {}"),
            ("pseudo_accuracy", "pseudo-labels right {}"),
            ("samples_per_s", "{} samples/s"),
            ("seconds", "in {}"),
        ):
            if event.get(key) is not None:
                parts.append(shown.format(_shown(key, event[key])))
        if kind == "train" and not event.get("baseline") and self.seconds_left is not None:
            parts.append(f"{_shown('seconds', self.seconds_left)} left")
        return "  ".join(parts)

    def render(self) -> RenderableType:
        """The live table: where the run is, then the last epochs."""
        return Group(self._head(), self._history())

    def _remember(self, event: Event) -> None:
        kind = event.get("kind")
        if kind == "start":
            self._total = {k: int(event[k]) for k in ("epochs", "num_steps") if k in event}
            self._now, self._pace = {}, None
            return
        if kind not in _SHOWN:
            return
        self._now.update(event)
        self._now["baseline"] = bool(event.get("baseline"))
        if event.get("baseline"):
            return
        if kind == "train" and self._pace is None and "step" in event:
            self._pace = Pace(self._clock(), int(event["step"]))
        row = self._row(event)
        if row is not None:
            row.update({k: v for k, v in event.items() if k in _COLUMNS})
            if kind == "eval":
                row[str(event.get("split"))] = event.get("accuracy")

    def _row(self, event: Event) -> dict[str, Any] | None:
        """The row of an event; the last round and the test score stand apart, at the end."""
        if "epoch" not in event:
            return None
        done = int(event["epoch"]) + (0 if event.get("kind") == "eval" else 1)
        after = event.get("split") == "test" or done > self._total.get("epochs", done)
        name = "end" if after else str(done)
        for row in self._rows:
            if row["row"] == name:
                return row
        self._rows.append({"row": name})
        return self._rows[-1]

    def _is_due(self, event: Event) -> bool:
        if event.get("kind") == "train":
            return self._clock() - self._last_line_s >= self._pause_s
        return event.get("kind") in {"start", "round", "eval", *_NOTICES}

    def _position(self, event: Event) -> str:
        epochs, steps = self._total.get("epochs"), self._total.get("num_steps")
        epoch = f"epoch {int(event.get('epoch', 0)) + 1}" + (f"/{epochs}" if epochs else "")
        return f"{epoch}  step {event.get('step')}" + (f"/{steps}" if steps else "")

    def _head(self) -> RenderableType:
        now = self._now
        cells: list[RenderableType] = [Text(self._title, style="bold")]
        if now.get("baseline"):
            cells.append(Text(f"supervised baseline, step {now.get('step', '')}"))
        elif now.get("step") is not None:
            cells.append(Text(self._position(now)))
            last = self._total.get("num_steps")
            if last:
                cells.append(ProgressBar(total=last, completed=min(now["step"], last), width=20))
        for key, shown in (("loss", "loss {}"), ("samples_per_s", "{} samples/s")):
            if now.get(key) is not None:
                cells.append(Text(shown.format(_shown(key, now[key]))))
        if self.seconds_left is not None:
            cells.append(Text(f"{_shown('seconds', self.seconds_left)} left"))
        head = Table.grid(padding=(0, 2))
        head.add_row(*cells)
        return head

    def _history(self) -> RenderableType:
        present = [key for key in _COLUMNS if any(r.get(key) is not None for r in self._rows)]
        table = Table(box=None, pad_edge=False, header_style="dim")
        for key in present:
            table.add_column(_COLUMNS[key], justify="right")
        for row in self._rows:
            table.add_row(*(_shown(key, row.get(key)) for key in present))
        return table


def _shown(key: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if key in _SHARES:
        return f"{100 * float(value):.1f} %"
    if key == "seconds":
        return duration(float(value))
    if key == "loss":
        return f"{float(value):.4f}"
    return f"{float(value):,.0f}"
