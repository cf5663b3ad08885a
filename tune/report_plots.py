"""Figures of a sweep's report: numbers in, a matplotlib `Figure` out; the style of a run's report.

Parallel coordinates, importance of the parameters, scores by parameter, best score so far.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.colors
import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

from ..trainers.plots import BLUE, GRAY, INK, ORANGE, new_figure, styled

# Lightness rises with the score; not so light at the end that lines vanish on white.
_SCALE = matplotlib.colors.ListedColormap(
    matplotlib.colormaps["viridis"](np.linspace(0.0, 0.9, 256))
)
# The ground behind labels; the page puts that of its theme in its place.
PAPER = "#fefdfc"
_MAX_LEVELS = 12
_MISSING = -0.12


@dataclass(frozen=True)
class Axis:
    """One parameter of all points.

    Attributes:
        values: A number, a text or None (the point has no such parameter) per point.
        is_log: Searched by order of magnitude.
    """

    name: str
    values: tuple[Any, ...]
    is_log: bool = False

    @property
    def known(self) -> list[Any]:
        return [value for value in self.values if value is not None]

    @property
    def is_numeric(self) -> bool:
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in self.known)

    @property
    def levels(self) -> list[Any]:
        """The different values: numbers ascending, others in order of appearance."""
        found = list(dict.fromkeys(self.known))
        return sorted(found) if self.is_numeric else found

    @property
    def numbers(self) -> np.ndarray:
        """Values as numbers, logarithms of a logarithmic one, NaN where there is none."""
        if not self.is_numeric:
            levels = self.levels
            found = [math.nan if v is None else float(levels.index(v)) for v in self.values]
        elif self.is_log:
            found = [math.nan if v is None else math.log10(v) for v in self.values]
        else:
            found = [math.nan if v is None else float(v) for v in self.values]
        return np.array(found)

    def heights(self) -> np.ndarray:
        """Where values lie on an axis from 0 to 1; below it where there is none."""
        numbers = self.numbers
        low, high = np.nanmin(numbers), np.nanmax(numbers)
        scaled = (numbers - low) / (high - low) if high > low else np.full(len(numbers), 0.5)
        return np.where(np.isnan(numbers), _MISSING, scaled)

    def ticks(self) -> list[tuple[float, str]]:
        """Heights that are labeled, and their labels."""
        numbers = self.numbers
        low, high = float(np.nanmin(numbers)), float(np.nanmax(numbers))
        if high == low:
            return [(0.5, shown_value(self.levels[0]))]
        if not self.is_numeric:
            count = len(self.levels)
            shown = (
                self.levels if count <= _MAX_LEVELS else self.levels[:: count // _MAX_LEVELS + 1]
            )
            marks = [(float(self.levels.index(v)), shown_value(v)) for v in shown]
        elif self.is_log:
            marks = [(math.log10(v), shown_value(v)) for v in _log_marks(10**low, 10**high)]
        else:
            whole = all(isinstance(value, int) for value in self.known)
            locator = matplotlib.ticker.MaxNLocator(5, integer=whole)
            marks = [(v, shown_value(float(v))) for v in locator.tick_values(low, high)]
        inside = [(at, text) for at, text in marks if low - 1e-9 <= at <= high + 1e-9]
        return [((at - low) / (high - low), text) for at, text in inside]


@styled
def parallel_coordinates(
    axes_of: Sequence[Axis], scores: Sequence[float], *, metric: str, best: int
) -> Figure:
    """A line per point through its parameters to its score; the best one on top, in colour.

    Args:
        scores: Finite, one per point.
        best: Number of the best point.
    """
    axes_of = [*axes_of, Axis(metric, tuple(float(s) for s in scores))]
    width = float(np.clip(1.6 * len(axes_of) + 1.2, 6.4, 16.0))
    figure, axes = new_figure("Parallel coordinates", x="", y="", size=(width, 4.6))
    heights = np.stack([axis.heights() for axis in axes_of])
    order = np.argsort(np.asarray(scores), kind="stable")
    places = np.arange(len(axes_of))
    low, high = float(np.min(scores)), float(np.max(scores))
    tint = matplotlib.colors.Normalize(low, high if high > low else low + 1.0)
    for number in [i for i in order if i != best]:
        color = _SCALE(tint(scores[number]))
        axes.plot(places, heights[:, number], color=color, linewidth=1.0, alpha=0.55)
    axes.plot(places, heights[:, best], color=ORANGE, linewidth=3.0, marker="o", label="best")
    has_missing = bool((heights == _MISSING).any())
    for place, axis in zip(places, axes_of):
        # Labels of the last axis go where no line passes.
        side = 1 if place == places[-1] else -1
        axes.axvline(place, color=INK, linewidth=0.8, ymin=0.0, zorder=3)
        for at, text in axis.ticks():
            axes.plot([place, place + side * 0.02], [at, at], color=INK, linewidth=0.8, zorder=4)
            _tag(axes, float(place), at, text, side=side)
        if None in axis.values:
            _tag(axes, float(place), _MISSING, "none", side=side)
    names = [axis.name + ("\n(log)" if axis.is_log else "") for axis in axes_of]
    axes.set_xticks(places, names)
    axes.xaxis.tick_top()
    axes.tick_params(axis="x", length=0, pad=4)
    axes.set_yticks([])
    axes.set_xlim(-0.55, len(axes_of) - 0.55)
    axes.set_ylim(-0.2 if has_missing else -0.06, 1.06)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.01))
    return figure


@styled
def importance(names: Sequence[str], drops: np.ndarray, *, metric: str) -> Figure:
    """How much worse a forest predicts the score when a parameter is shuffled.

    Args:
        drops: (parameters, repeats) losses of R^2.
    """
    mean, sd = drops.mean(axis=1), drops.std(axis=1)
    order = np.argsort(mean, kind="stable")
    height = 1.3 + 0.42 * len(names)
    figure, axes = new_figure(
        f"Importance for {metric}",
        x="R² that is lost when it is shuffled",
        y="",
        size=(6.4, height),
    )
    places = np.arange(len(names))
    axes.barh(places, mean[order], xerr=sd[order], color=BLUE, ecolor=INK, height=0.65, capsize=3)
    axes.set_yticks(places, [names[i] for i in order])
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.axvline(0.0, color=INK, linewidth=0.8)
    return figure


@styled
def best_so_far(scores: Sequence[float], *, metric: str, sign: float) -> Figure:
    """Score of each point by its number (NaN: none), and the best until then."""
    figure, axes = new_figure("Best so far", x="point", y=metric)
    found = np.asarray(scores, dtype=np.float64)
    numbers = np.arange(len(found))
    known = np.isfinite(found)
    axes.scatter(numbers[known], found[known], s=18, color=GRAY, linewidths=0, label="point")
    best = sign * np.maximum.accumulate(np.where(known, sign * found, -np.inf))
    reached = np.isfinite(best)
    axes.step(numbers[reached], best[reached], where="post", color=BLUE, label="best so far")
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    axes.margins(y=0.08)
    axes.legend(ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.16))
    return figure


@styled
def scores_by_parameter(
    axes_of: Sequence[Axis], scores: Sequence[float], *, metric: str, best: int
) -> Figure:
    """A small picture per parameter: its value and the score of every point that has one."""
    columns = 2 if len(axes_of) == 4 else min(3, len(axes_of))
    rows = math.ceil(len(axes_of) / columns)
    figure = Figure(figsize=(max(6.4, 3.5 * columns), 0.5 + 2.7 * rows))
    for number, axis in enumerate(axes_of):
        axes = figure.add_subplot(rows, columns, number + 1)
        has = np.array([value is not None for value in axis.values])
        x, y = axis.numbers[has], np.asarray(scores)[has]
        if axis.is_numeric and axis.is_log:
            x = 10.0**x
            axes.set_xscale("log")
            marks = _log_marks(float(x.min()), float(x.max()))
            axes.set_xticks(marks, [shown_value(v) for v in marks])
            axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
        elif axis.is_numeric:
            axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
        else:
            # Points of one choice side by side, always the same way.
            x = x + np.random.default_rng(0).uniform(-0.18, 0.18, len(x))
            texts = [shown_value(level) for level in axis.levels]
            long = max(map(len, texts)) * len(texts) > 24
            axes.set_xticks(range(len(texts)), texts, rotation=25 if long else 0)
            if long:
                for label in axes.get_xticklabels():
                    label.set(ha="right", rotation_mode="anchor")
            axes.set_xlim(-0.5, len(texts) - 0.5)
            axes.grid(axis="x", visible=False)
        axes.scatter(x, y, s=16, color=BLUE, alpha=0.55, linewidths=0)
        if has[best]:
            at = int(has[: best + 1].sum()) - 1
            axes.scatter([x[at]], [y[at]], s=60, color=ORANGE, edgecolors=INK, zorder=3)
        axes.set_title(axis.name + (" (log)" if axis.is_log else ""))
        axes.set_ylabel(metric if number % columns == 0 else "")
    return figure


def shown_value(value: Any) -> str:
    """A parameter's value in few characters."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _log_marks(low: float, high: float) -> list[float]:
    """Round numbers between two, about as many as can be read."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for steps in ((1, 2, 5), (1, 3), (1,)):
        marks = [float(f"{s}e{e}") for e in range(first, last + 1) for s in steps]
        inside = [v for v in marks if low * (1 - 1e-9) <= v <= high * (1 + 1e-9)]
        if 2 <= len(inside) <= 6:
            return inside
    every = max(1, (last - first) // 5 + 1)
    inside = [10.0**e for e in range(first, last + 1, every) if low <= 10.0**e <= high]
    return inside if len(inside) > 1 else [low, high]


def _tag(axes: Any, x: float, y: float, text: str, *, side: int) -> None:
    """A label beside an axis: to its left (-1) or right (1)."""
    box = {"boxstyle": "round,pad=0.12", "facecolor": PAPER, "alpha": 0.85, "linewidth": 0}
    axes.text(
        x + side * 0.035,
        y,
        text,
        ha="left" if side > 0 else "right",
        va="center",
        fontsize=8.5,
        color=INK,
        bbox=box,
        zorder=5,
    )
