"""Figures of a run's report: arrays in, a matplotlib `Figure` out. One style for all of them.

Figures are built without pyplot: no global state, no display. `as_svg` leaves text as text and
turns the ink into `currentColor`, so that a figure inside a page follows its light or dark theme;
`as_png` is the same figure on white.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, ParamSpec

import matplotlib
import matplotlib.colors
import matplotlib.ticker
import numpy as np
from matplotlib.figure import Figure

P = ParamSpec("P")

INK = "#10151b"
BLUE, ORANGE, GREEN, RED, PURPLE, GRAY = (
    "#2f7fc1",
    "#d9772b",
    "#2a9d78",
    "#d04a5b",
    "#8a63d2",
    "#8a929c",
)
# Told apart with common colour blindness and on light and dark grounds alike (after P. Tol).
CLASS_COLORS = (
    "#4a7fc9",
    "#e08a2e",
    "#2a9d78",
    "#d04a5b",
    "#9a6fd0",
    "#a3734c",
    "#d977b8",
    "#8a929c",
    "#b5a823",
    "#27a9bd",
)
_MAX_LEGEND = 20
_MAX_NAME = 28
_SVG_NAMES = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
_MAX_CELLS_WITH_NUMBERS = 12
_STYLE: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "text.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 2.0,
    "lines.solid_capstyle": "round",
    "figure.constrained_layout.use": True,
    "svg.fonttype": "none",
    "text.parse_math": False,  # names of classes are no formulas
}


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Artists take their style when they are made, so all drawing happens under ours."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(_STYLE):
            return draw(*args, **kwargs)

    return drawn


@styled
def loss_curve(
    steps: Sequence[float],
    totals: Mapping[str, Sequence[float]],
    parts: Mapping[str, Sequence[float]],
    baseline: tuple[Sequence[float], Sequence[float]] | None = None,
) -> Figure:
    """Training loss by step, its named parts as thin lines, the baseline's loss in gray.

    Args:
        totals: By what the legend calls them; NaN leaves a gap.
    """
    figure, axes = new_figure("Training loss", x="step", y="loss")
    if baseline is not None and len(baseline[0]):
        axes.plot(*baseline, color=GRAY, linewidth=1.5, label="supervised baseline")
    for color, (name, values) in zip(CLASS_COLORS[1:], parts.items()):
        axes.plot(steps, values, color=color, linewidth=1.2, label=name.replace("_", " "))
    for color, (name, values) in zip((BLUE, INK, PURPLE), totals.items()):
        axes.plot(steps, values, color=color, label=name, marker=_dot(steps))
    lowest = [np.nanmin(values) for values in (*totals.values(), *parts.values())]
    axes.set_ylim(bottom=min(0.0, *lowest))
    if parts or baseline is not None or len(totals) > 1:
        _legend_below(axes, len(totals) + len(parts) + (baseline is not None))
    return figure


@styled
def accuracy_curve(
    epochs: Sequence[float],
    accuracies: Sequence[float],
    *,
    test: float | None = None,
    baseline: float | None = None,
) -> Figure:
    """Validation accuracy by epoch; test accuracy and the baseline's as level lines."""
    figure, axes = new_figure("Accuracy", x="epoch", y="")
    axes.plot(epochs, accuracies, color=BLUE, marker=_dot(epochs), label="validation")
    for value, name, color in ((test, "test", GREEN), (baseline, "baseline, test", GRAY)):
        if value is not None:
            axes.axhline(value, color=color, linestyle="--", linewidth=1.5, label=name)
    axes.margins(y=0.08)
    _percent(axes.yaxis)
    _legend_below(axes, 3)
    return figure


@styled
def label_quality(
    rounds: Sequence[float],
    coverage: Sequence[float],
    accuracy: Sequence[float | None],
) -> Figure:
    """Coverage and accuracy of the pseudo-labels by round."""
    figure, axes = new_figure("Pseudo-labels by round", x="round", y="")
    axes.plot(rounds, coverage, color=ORANGE, marker=_dot(rounds), label="coverage")
    judged = [(r, a) for r, a in zip(rounds, accuracy) if a is not None]
    if judged:
        axes.plot(*zip(*judged), color=BLUE, marker=_dot(judged), label="right, of those given")
    axes.margins(y=0.08)
    _percent(axes.yaxis)
    _whole(axes.xaxis)
    _legend_below(axes, 2)
    return figure


@styled
def round_seconds(rounds: Sequence[float], seconds: Mapping[str, Sequence[float]]) -> Figure:
    """Seconds that each part of a round took, stacked."""
    figure, axes = new_figure("Time per round", x="round", y="seconds")
    bottom = np.zeros(len(rounds))
    colors = (BLUE, ORANGE, GREEN, PURPLE, GRAY)
    for color, (name, values) in zip(colors, seconds.items()):
        axes.bar(rounds, values, bottom=bottom, color=color, width=0.8, label=name)
        bottom += np.asarray(values)
    axes.grid(axis="x", visible=False)
    _whole(axes.xaxis)
    _legend_below(axes, len(seconds))
    return figure


@styled
def histogram(title: str, values: np.ndarray, *, x: str, color: str = BLUE) -> Figure:
    """How often each value occurs; whole numbers get a bar each."""
    figure, axes = new_figure(title, x=x, y="nodes")
    values = values[np.isfinite(values)]
    if values.dtype.kind in "iu" and len(values) and np.ptp(values) <= 60:
        edges = np.arange(values.min(), values.max() + 2) - 0.5
        axes.hist(values, bins=edges, color=color, rwidth=0.9)
        _whole(axes.xaxis)
    else:
        axes.hist(values, bins=40, color=color, rwidth=0.92)
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(7))
    axes.grid(axis="x", visible=False)
    return figure


@styled
def confusion(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """Rows: true class, columns: predicted. Strength of a cell: its share of the row.

    Right ones are blue, wrong ones red; wrong shares are shown four times as strong, because a
    few percent are what a reader looks for.
    """
    num_classes = len(counts)
    side = float(np.clip(2.2 + 0.42 * num_classes, 4.2, 9.0))
    figure, axes = new_figure(
        "Confusion on the test split", x="predicted", y="true", size=(side, side)
    )
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    right = np.eye(num_classes, dtype=bool)
    colors = np.empty((num_classes, num_classes, 4))
    colors[right] = matplotlib.colors.to_rgba(BLUE)
    colors[~right] = matplotlib.colors.to_rgba(RED)
    colors[..., 3] = np.where(right, share, np.minimum(1.0, 4 * share))
    edges = np.arange(num_classes + 1) - 0.5
    mesh = axes.pcolormesh(edges, edges, share, rasterized=num_classes > 30)
    mesh.set_array(None)
    mesh.set_facecolor(colors.reshape(-1, 4))
    if num_classes <= _MAX_CELLS_WITH_NUMBERS:
        for i, j in np.argwhere(counts > 0):
            color = "white" if colors[i, j, 3] > 0.6 else INK
            axes.text(j, i, str(counts[i, j]), ha="center", va="center", color=color, fontsize=9)
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if num_classes <= 40:
        shown = [shortened(name) for name in names]
        axes.set_xticks(range(num_classes), shown, rotation=90 if _are_long(shown) else 0)
        axes.set_yticks(range(num_classes), shown)
    return figure


@styled
def feature_map(
    points: np.ndarray, labels: np.ndarray, given: np.ndarray, names: Sequence[str]
) -> Figure:
    """Nodes in the plane, coloured by label; the given labels are ringed and larger."""
    figure, axes = new_figure("Features, in two dimensions", x="", y="", size=(6.4, 5.4))
    for index, name in enumerate(names):
        mine = (labels == index) & ~given
        color = class_color(index, len(names))
        axes.scatter(
            *points[mine].T, s=14, color=color, alpha=0.7, linewidths=0, label=shortened(name)
        )
    order = np.flatnonzero(given & (labels >= 0))
    rings = [class_color(int(labels[i]), len(names)) for i in order]
    if len(order):
        axes.scatter(
            *points[order].T, s=52, c=rings, edgecolors=INK, linewidths=1.3, marker="D", zorder=3
        )
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if len(names) <= _MAX_LEGEND:
        legend = axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), markerscale=2.2)
        for handle in legend.legend_handles:
            handle.set_alpha(1.0)
    return figure


def class_color(index: int, num_classes: int) -> str:
    """Colour of a class; beyond ten classes neighbours on a rainbow."""
    if num_classes <= len(CLASS_COLORS):
        return CLASS_COLORS[index]
    return str(matplotlib.colors.to_hex(matplotlib.colormaps["turbo"]((index + 0.5) / num_classes)))


def shortened(name: str) -> str:
    """A class's name as figures show it: a long one would leave no room for the data."""
    return name if len(name) <= _MAX_NAME else f"{name[: _MAX_NAME - 1]}…"


def as_png(figure: Figure) -> bytes:
    """The figure on white, 144 dots per inch."""
    _settle(figure)
    out = io.BytesIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(out, format="png", dpi=144, facecolor="white", metadata={"Software": None})
    return out.getvalue()


def as_svg(figure: Figure, *, name: str, description: str) -> str:
    """The figure as an `<svg>` element to be put into a page.

    Args:
        name: Distinguishes the ids inside from those of other figures on the page.
        description: What a reader who cannot see it should know.
    """
    _settle(figure)
    out = io.StringIO()
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # Ids are unique within one figure only; the page holds many.
    svg = re.sub(r'(id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r'<svg[^>]*?(viewBox="[^"]*")[^>]*>', rf"<svg \1 {_SVG_NAMES}>", svg, count=1)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{_attribute(description)}" ', 1)


def new_figure(
    title: str, *, x: str, y: str, size: tuple[float, float] = (6.4, 3.6)
) -> tuple[Figure, Any]:
    figure = Figure(figsize=size)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    return figure, axes


def _settle(figure: Figure) -> None:
    """Lay the figure out once: the engine would do it again for every file."""
    if figure.get_layout_engine() is None:
        return
    figure.draw_without_rendering()
    # None alone takes the engine away ("none" leaves a placeholder, for which every file is drawn
    # twice), and only where no other is the default.
    with matplotlib.rc_context(
        {"figure.constrained_layout.use": False, "figure.autolayout": False}
    ):
        figure.set_layout_engine(None)


def _dot(points: Sequence[Any]) -> str:
    """A line of one point is invisible, and few points are easier to read as points."""
    return "o" if len(points) <= 20 else ""


def _legend_below(axes: Any, num_entries: int) -> None:
    """Under the axes, where it cannot hide data."""
    columns = min(num_entries, 4)
    axes.legend(ncols=columns, loc="upper center", bbox_to_anchor=(0.5, -0.16))


def _percent(axis: Any) -> None:
    axis.set_major_formatter(lambda share, _: f"{100 * share:g} %")


def _whole(axis: Any) -> None:
    axis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))


def _are_long(names: Sequence[str]) -> bool:
    return max((len(name) for name in names), default=0) > 3


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
