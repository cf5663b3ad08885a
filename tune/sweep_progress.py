"""What a sweep says while it runs: a live table of its points, plain lines where no terminal is.

Events are those of `ray_tune.py`: {"kind": "sweep", "points": 12, "done": 0, "at_once": 4}, then of
each point {"kind": "point begins" | "point round" | "point", "point": 3, ...}.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..cluster.live_display import LiveDisplay
from .points import Mode

Event = Mapping[str, Any]
_ROWS = 12


class SweepProgress(LiveDisplay):
    """Renders a sweep's events; a context manager that restores the terminal."""

    def __init__(
        self, title: str, metric: str, mode: Mode, *, console: Console | None = None
    ) -> None:
        super().__init__(console)
        self._title = title
        self._metric = metric
        self._sign = 1.0 if mode == "max" else -1.0
        self._total: dict[str, int] = {}
        self._points: dict[int, dict[str, Any]] = {}

    def update(self, event: Event) -> None:
        """Take in one event. Unknown kinds are ignored: progress never stops a sweep."""
        kind = event.get("kind")
        if kind == "sweep":
            self._total = {k: int(event[k]) for k in ("points", "done", "at_once")}
        elif kind in {"point begins", "point round", "point"}:
            self._remember(event)
        if self.is_live:
            self.redraw()
        elif kind in {"sweep", "point begins", "point"}:
            self.print_line(self.line(event))

    def line(self, event: Event) -> str:
        """One event as one line: `point 3 finished: val/accuracy 0.9410 sd 0.0123 in 0:41`."""
        if event["kind"] == "sweep":
            done = f", {event['done']} of them done" if event["done"] else ""
            return f"{self._title}: {event['points']} points{done}, {event['at_once']} at a time"
        name = f"point {event['point']}"
        values = ", ".join(f"{k} {_shown(v)}" for k, v in event["params"].items())
        if event["kind"] == "point begins":
            return f"{name} begins: {values}"
        if event["state"] == "failed":
            return f"{name} failed: {event['error']}"
        spread = "" if math.isnan(event["sd"]) else f" sd {event['sd']:.4f}"
        how = "finished" if event["state"] == "finished" else f"stopped after {event['rounds']}"
        best = self._best()
        is_best = best is not None and best["point"] == event["point"]
        return (
            f"{name} {how}: {self._metric} {event['mean']:.4f}{spread} in "
            f"{_minutes(event['seconds'])}{', the best so far' if is_best else ''}"
        )

    def render(self) -> RenderableType:
        """The live table: how many are done, the best, and the last points."""
        ended = sum("state" in point for point in self._points.values()) + self._total.get(
            "done", 0
        )
        head = f"{self._title}  {ended}/{self._total.get('points', '?')} points"
        best = self._best()
        if best is not None:
            head += f"  best {self._metric} {best['mean']:.4f} (point {best['point']})"
        table = Table(box=None, pad_edge=False, header_style="dim")
        shown = list(self._points.values())[-_ROWS:]
        keys = list(shown[-1]["params"]) if shown else []
        for name in ("point", *keys, "rounds", self._metric, ""):
            table.add_column(name, justify="right")
        for point in shown:
            score = point.get("mean", point.get("score"))
            table.add_row(
                str(point["point"]),
                *(_shown(point["params"].get(key)) for key in keys),
                str(point.get("rounds", point.get("round", ""))),
                "" if score is None or math.isnan(score) else f"{score:.4f}",
                str(point.get("state", "")),
            )
        return Group(Text(head, style="bold"), table)

    def _remember(self, event: Event) -> None:
        point = self._points.setdefault(int(event["point"]), {"params": {}})
        if event["kind"] == "point begins":
            point.clear()
        point.update({k: v for k, v in event.items() if k != "kind"})

    def _best(self) -> dict[str, Any] | None:
        finished = [p for p in self._points.values() if p.get("state") == "finished"]
        return max(finished, key=lambda p: self._sign * p["mean"], default=None)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _minutes(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
