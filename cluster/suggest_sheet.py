"""Pictures of suggestions: the samples themselves, or where they lie among all others."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ..trainers.plots import GRAY, INK, as_png, class_color
from ..trainers.report_figures import in_the_plane
from .suggest import Suggestions

MAX_IMAGES = 100
_MAX_POINTS = 2000
_MAX_LEGEND = 20
_CELL, _CAPTION, _MARGIN, _TITLE = 1.1, 0.34, 0.14, 0.62
_NUMBERED = "#c8372d"
# Names of classes and keys are no formulas.
_STYLE = {"font.family": "sans-serif", "text.color": INK, "text.parse_math": False}


def image_sheet(
    suggestions: Suggestions, images: Mapping[int, NDArray[np.uint8]], title: str
) -> bytes:
    """A PNG of the samples, best first: rank, image, key, predicted class and its confidence.

    Args:
        images: (c, h, w) by node; samples without one have a cross in their place. At most
            MAX_IMAGES are shown.
    """
    count = min(len(suggestions), MAX_IMAGES)
    columns = min(count, max(4, min(10, math.ceil(math.sqrt(1.6 * count)))))
    rows = math.ceil(count / columns)
    # Wide enough for the heading, however few there are.
    width = max(columns * (_CELL + _MARGIN) + _MARGIN, 5.2)
    height = _TITLE + rows * (_CELL + _CAPTION + _MARGIN) + _MARGIN / 2
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height))
        _heading(figure, title, _subtitle(len(suggestions), count))
        for place in range(count):
            row, column = divmod(place, columns)
            left = _MARGIN + column * (_CELL + _MARGIN)
            top = height - _TITLE - row * (_CELL + _CAPTION + _MARGIN)
            axes = figure.add_axes(
                (left / width, (top - _CELL) / height, _CELL / width, _CELL / height)
            )
            _draw_image(axes, images.get(int(suggestions.node_ids[place])))
            _caption(axes, suggestions, place)
        return as_png(figure)


def map_sheet(
    suggestions: Suggestions,
    features: NDArray[Any],
    labels: NDArray[np.int64],
    title: str,
    *,
    seed: int = 0,
) -> bytes:
    """A PNG map of the features in the plane: suggestions by number, and the labels there are.

    Args:
        features: (n, D) of all nodes; 2,000 of them are shown, suggestions and labeled ones first.
        labels: (n,) given, -1 = unlabeled.
    """
    shown = _shown_rows(suggestions.node_ids, labels, seed)
    points, how = in_the_plane(np.asarray(features[shown], np.float32), seed)
    place_of = {int(node): place for place, node in enumerate(shown)}
    given = labels[shown]
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(8.2, 7.0))
        about = f"{len(shown):,} of {len(labels):,} rows by {how}; numbers are ranks"
        _heading(figure, title, about)
        axes = figure.add_axes((0.02, 0.02, 0.82, 0.88))
        axes.set_axis_off()
        x, y = points[given < 0].T
        axes.scatter(x, y, s=9, color=GRAY, alpha=0.35, linewidths=0)
        _draw_labels(axes, points, given, suggestions.classes)
        ranked = [i for i, node in enumerate(suggestions.node_ids) if int(node) in place_of]
        chosen = points[[place_of[int(suggestions.node_ids[i])] for i in ranked]]
        _draw_numbers(axes, chosen)
        handles, names = axes.get_legend_handles_labels()
        if len(names) <= _MAX_LEGEND + 1:
            figure.legend(handles, names, loc="center left", bbox_to_anchor=(0.84, 0.5),
                          frameon=False, fontsize=9)  # fmt: skip
        return as_png(figure)


def _subtitle(total: int, shown: int) -> str:
    first = f"the first {shown} of {total}" if shown < total else f"{total} samples"
    return f"{first}, best first; below each: key, predicted class and its confidence"


def _heading(figure: Figure, title: str, subtitle: str) -> None:
    width, height = figure.get_size_inches()
    left = _MARGIN / width
    figure.text(left, 1 - 0.14 / height, title, fontsize=11, fontweight="bold", va="top")
    figure.text(left, 1 - 0.36 / height, subtitle, fontsize=7.5, color=GRAY, va="top")


def _draw_image(axes: Any, image: NDArray[np.uint8] | None) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=GRAY, linewidth=0.5)
    if image is None:
        axes.plot([0, 1], [0, 1], color=GRAY, linewidth=0.8)
        axes.plot([0, 1], [1, 0], color=GRAY, linewidth=0.8)
        return
    pixels = image.transpose(1, 2, 0)
    is_gray = pixels.shape[2] != 3
    # Blocks where pixels are few, no stairs where they are many.
    how = "nearest" if max(pixels.shape[:2]) < 100 else "antialiased"
    axes.imshow(
        pixels[..., 0] if is_gray else pixels,
        cmap="gray" if is_gray else None,
        vmin=0,
        vmax=255,
        interpolation=how,
    )


def _caption(axes: Any, suggestions: Suggestions, place: int) -> None:
    node = suggestions.node_ids[place]
    key = f"row {node}" if suggestions.keys is None else str(suggestions.keys[place])
    name = suggestions.label_names()[place]
    share = f"{100 * suggestions.confidence[place]:.0f} %"
    below = f"{_shortened(name, 13)}  {share}" if name else "nothing known"
    text = {"transform": axes.transAxes, "va": "top", "clip_on": False}
    axes.text(0, -0.04, _shortened(key, 18), fontsize=6.5, color=GRAY, **text)
    axes.text(0, -0.19, below, fontsize=7.5, **text)
    badge = {"boxstyle": "round,pad=0.18", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
    axes.text(
        0.035, 0.965, str(place + 1), fontsize=6.5, color=_NUMBERED, fontweight="bold",
        bbox=badge, **text,
    )  # fmt: skip


def _shortened(text: str, size: int) -> str:
    """Names differ at their ends more often than at their beginnings."""
    return text if len(text) <= size else f"…{text[1 - size :]}"


def _shown_rows(
    suggested: NDArray[np.int64], labels: NDArray[np.int64], seed: int
) -> NDArray[np.int64]:
    urgency = np.where(labels >= 0, 1, 2)
    urgency[suggested] = 0
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    order = shuffled[np.argsort(urgency[shuffled], kind="stable")]
    return np.sort(order[:_MAX_POINTS])


def _draw_labels(
    axes: Any, points: NDArray[Any], given: NDArray[np.int64], names: NDArray[Any] | None
) -> None:
    classes = np.unique(given[given >= 0]).tolist()
    for index, label in enumerate(classes):
        axes.scatter(
            *points[given == label].T,
            s=40,
            marker="D",
            color=class_color(index, len(classes)),
            edgecolors=INK,
            linewidths=0.8,
            label=str(label if names is None else names[label]),
            zorder=2,
        )


def _draw_numbers(axes: Any, chosen: NDArray[Any]) -> None:
    """Rings with the rank in them; where they would overlap, all but the best are dots."""
    axes.update_datalim(chosen)
    axes.autoscale_view()
    where = axes.transData.transform(chosen)
    apart = 13 * axes.figure.dpi / 72
    numbered: list[int] = []
    for rank, place in enumerate(where):
        if all(np.hypot(*(place - where[other])) >= apart for other in numbered):
            numbered.append(rank)
    dots = np.delete(chosen, numbered, axis=0)
    x, y = dots.T
    axes.scatter(x, y, s=22, color=_NUMBERED, edgecolors="white", linewidths=0.6, zorder=3)
    axes.scatter(
        *chosen[numbered].T, s=120, facecolors="white", edgecolors=_NUMBERED, linewidths=1.4,
        zorder=4, label="suggested",
    )  # fmt: skip
    for rank in numbered:
        axes.annotate(
            str(rank + 1), chosen[rank], ha="center", va="center", fontsize=6, fontweight="bold",
            color=_NUMBERED, zorder=5,
        )  # fmt: skip
