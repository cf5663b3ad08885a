"""A sweep's report: one self-contained HTML page, its plots as PNG, its table as CSV, the best
configuration as TOML.

    <uri>/report.html  plots/*.png  table.csv  table.parquet  sweep.json  best.toml
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.csv
from markupsafe import Markup

from .. import __version__
from ..trainers import report as run_report
from ..trainers.report_figures import Plot, Section
from ..trainers.run_dir import RunDir
from . import report_plots
from .points import Point, SweepResult
from .report_plots import Axis, shown_value

BEST_FILE = "best.toml"
# A forest that has seen fewer points says more about them than about the parameters.
MIN_POINTS_FOR_IMPORTANCE = 20
_TREES, _SHUFFLES = 100, 10
_MAX_ROWS = 1000


@dataclass(frozen=True)
class Importance:
    """What a forest of trees makes of the parameters.

    Attributes:
        drops: (parameters, shuffles) what R^2 loses when a parameter is shuffled.
        explained: R^2 out of the bag: on points that a tree has not seen.
    """

    names: tuple[str, ...]
    drops: np.ndarray
    explained: float


def write_sweep_report(
    result: SweepResult,
    uri: str,
    best_config_toml: str | None = None,
    *,
    command: str | None = None,
    notes: Sequence[str] = (),
) -> str:
    """Write the report of a sweep into a folder at any fsspec URI; returns where the page lies.

    Args:
        best_config_toml: Written as `best.toml`, for `labelmesh train`.
        command: How to use the best point; by default `labelmesh train best.toml`.
        notes: Sentences below the best point.
    """
    folder = RunDir(uri)
    result.save(uri)
    if best_config_toml is not None:
        folder.write_text(BEST_FILE, best_config_toml)
        command = command or f"labelmesh train {folder.child(BEST_FILE)}"
    folder.write_bytes("table.csv", _csv(result.table()))
    html, plots = render(result, best_config_toml, command=command, notes=notes)
    for name, png in plots.items():
        folder.write_bytes(f"plots/{name}.png", png)
    folder.write_text("report.html", html)
    return folder.child("report.html")


def render(
    result: SweepResult,
    best_config_toml: str | None = None,
    *,
    command: str | None = None,
    notes: Sequence[str] = (),
) -> tuple[str, dict[str, bytes]]:
    """The page, and its plots by file name; a function of its arguments alone."""
    best = best_number(result)
    sections = [] if best is None else figures(result, best)
    templates = [
        Path(run_report.__file__).parent / "templates",
        Path(__file__).parent / "templates",
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("sweep.html").render(
        name=result.name,
        subtitle=f"sweep of {', '.join(result.keys)} · {result.metric}, "
        + ("larger is better" if result.mode == "max" else "smaller is better"),
        tiles=_tiles(result, best),
        best=None if best is None else _best_rows(result.points[best]),
        best_text=_best_text(result),
        best_config=best_config_toml,
        command=command,
        notes=list(notes),
        sections=[_in_page(section) for section in sections],
        header=_header(result),
        rows=_rows(result, best),
        table_text=_table_text(result),
        version=__version__,
    )
    return html, {plot.name: plot.png() for section in sections for plot in section.plots}


def best_number(result: SweepResult) -> int | None:
    """Number of the best point; None where no point was finished."""
    return next(iter(result.ranked), None)


def figures(result: SweepResult, best: int) -> list[Section]:
    """The sections that have something to show."""
    kept = [i for i, p in enumerate(result.points) if math.isfinite(p.mean)]
    finished = [i for i in kept if result.points[i].state == "finished"]
    axes = [axis for axis in axes_of(result, finished) if len(set(axis.values)) > 1]
    means = [result.points[i].mean for i in finished]
    at = finished.index(best)
    made = []
    if len(finished) > 1 and axes:
        lines = report_plots.parallel_coordinates(axes, means, metric=result.metric, best=at)
        caption = (
            f"Each line is a point, lighter for a larger {result.metric}; the best one is orange."
        )
        made.append(Plot("parallel_coordinates", lines, caption, is_wide=True))
        by_one = report_plots.scores_by_parameter(axes, means, metric=result.metric, best=at)
        caption = "The same points, parameter by parameter; the others vary at the same time."
        made.append(Plot("by_parameter", by_one, caption, is_wide=True))
    sections = [Section("What was tried", _spread_text(means), tuple(made))] if made else []
    sign = 1.0 if result.mode == "max" else -1.0
    scores = [p.mean if p.state == "finished" else math.nan for p in result.points]
    curve = report_plots.best_so_far(scores, metric=result.metric, sign=sign)
    after = f"The best point was number {best}; the last one was {len(result.points) - 1}."
    search = [Plot("best_so_far", curve, after)]
    text = "Means over the scores of each point."
    found = importance(axes, means)
    if isinstance(found, str):
        text += f" {found}"
    else:
        search.append(_importance_plot(found, result.metric))
    return [*sections, Section("The search", text, tuple(search))]


def axes_of(result: SweepResult, numbers: Sequence[int]) -> list[Axis]:
    """The searched parameters of some points, without those that none of them has."""
    axes = [
        Axis(key, tuple(result.points[i].params.get(key) for i in numbers), key in result.log_keys)
        for key in result.keys
    ]
    return [axis for axis in axes if axis.known]


def importance(axes: Sequence[Axis], scores: Sequence[float]) -> Importance | str:
    """Permutation importance on a random forest (Breiman 2001), or why there is none.

    A parameter that a point has not gets the commonest (or middle) value of the others: that it is
    missing must not tell the forest which method it is.
    """
    if len(scores) < MIN_POINTS_FOR_IMPORTANCE:
        return (
            f"Which parameter matters cannot be said from {len(scores)} points; "
            f"it takes {MIN_POINTS_FOR_IMPORTANCE}."
        )
    if not axes or max(scores) == min(scores):
        return "All points have the same score, so no parameter matters here."
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.inspection import permutation_importance

    columns = [_without_gaps(axis) for axis in axes]
    x, y = np.stack(columns, axis=1), np.asarray(scores, dtype=np.float64)
    forest = RandomForestRegressor(_TREES, oob_score=True, random_state=0, n_jobs=1).fit(x, y)
    shuffled = permutation_importance(forest, x, y, n_repeats=_SHUFFLES, random_state=0, n_jobs=1)
    names = tuple(axis.name for axis in axes)
    return Importance(names, np.asarray(shuffled.importances), float(forest.oob_score_))


def _without_gaps(axis: Axis) -> np.ndarray:
    numbers = axis.numbers
    if axis.is_numeric:
        usual = float(np.nanmedian(numbers))
    else:
        usual = float(np.bincount(numbers[~np.isnan(numbers)].astype(np.int64)).argmax())
    return np.where(np.isnan(numbers), usual, numbers)


def _importance_plot(found: Importance, metric: str) -> Plot:
    figure = report_plots.importance(found.names, found.drops, metric=metric)
    if found.explained <= 0.05:
        caption = (
            "To be read with doubt: the forest explains next to nothing of the scores of points "
            f"that it has not seen (R² {found.explained:.2f}); the differences may be chance."
        )
    else:
        caption = (
            f"A random forest explains {100 * found.explained:.0f} % of the variance between "
            "points that it has not seen. Bars: standard deviation over "
            f"{_SHUFFLES} shuffles."
        )
    return Plot("importance", figure, caption)


def _tiles(result: SweepResult, best: int | None) -> list[dict[str, str]]:
    points = result.points
    tiles = []
    if best is not None:
        note = f"± {points[best].sd:.4f} (sd of {points[best].num})" if points[best].num > 1 else ""
        tiles.append(
            {"name": f"best {result.metric}", "value": f"{points[best].mean:.4f}", "note": note}
        )
    states = {state: sum(p.state == state for p in points) for state in ("stopped", "failed")}
    note = ", ".join(f"{count} {state}" for state, count in states.items() if count)
    tiles.append({"name": "points", "value": f"{len(points):,}", "note": note})
    seconds = sum(point.seconds for point in points)
    tiles.append({"name": "work", "value": _duration(seconds), "note": "all points together"})
    return tiles


def _best_rows(point: Point) -> list[tuple[str, str]]:
    return [(key, shown_value(value)) for key, value in point.params.items()]


def _best_text(result: SweepResult) -> str:
    finished = sum(point.state == "finished" for point in result.points)
    return (
        f"The best of {finished} noisy means is likely to look better than it is: judge it once "
        "more on data that decided nothing."
    )


def _spread_text(means: Sequence[float]) -> str:
    low, middle, high = np.quantile(np.asarray(means), [0.0, 0.5, 1.0])
    return f"Scores lie between {low:.4f} and {high:.4f}, half of them above {middle:.4f}."


def _table_text(result: SweepResult) -> str:
    count = len(result.points)
    shown = f"The first {_MAX_ROWS:,} of {count:,}" if count > _MAX_ROWS else "All"
    return (
        f"{shown}, best first; a click on a column's name sorts by it. sd: over the scores of a "
        "point. The whole table is in table.csv and table.parquet."
    )


def _header(result: SweepResult) -> list[dict[str, Any]]:
    numbers = {"rank", "point", "mean", "sd", "scores", "seconds"}
    names = ["rank", "point", *result.keys, "mean", "sd", "scores", "seconds", "state"]
    return [{"text": name, "is_number": name in numbers} for name in names]


def _rows(result: SweepResult, best: int | None) -> list[dict[str, Any]]:
    sign = 1.0 if result.mode == "max" else -1.0

    def place(number: int) -> tuple[bool, float]:
        point = result.points[number]
        usable = point.state == "finished" and math.isfinite(point.mean)
        return not usable, -sign * point.mean if math.isfinite(point.mean) else math.inf

    order = sorted(range(len(result.points)), key=place)[:_MAX_ROWS]
    return [
        {
            "is_best": number == best,
            "cells": _cells(result, number, rank),
        }
        for rank, number in enumerate(order, 1)
    ]


def _cells(result: SweepResult, number: int, rank: int) -> list[dict[str, Any]]:
    point = result.points[number]
    cells = [_cell(rank, str(rank)), _cell(number, str(number))]
    cells += [_cell(point.params.get(key)) for key in result.keys]
    cells += [_cell(point.mean, f"{point.mean:.4f}"), _cell(point.sd, f"{point.sd:.4f}")]
    cells += [_cell(point.num), _cell(point.seconds, f"{point.seconds:.2f}")]
    state = point.state if point.error is None else f"{point.state}: {point.error}"
    return [*cells, _cell(state)]


def _cell(value: Any, text: str | None = None) -> dict[str, Any]:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is None or (is_number and not math.isfinite(value)):
        return {"text": "–", "value": "", "is_number": is_number}
    return {
        "text": shown_value(value) if text is None else text,
        "value": repr(value) if is_number else str(value),
        "is_number": is_number,
    }


def _in_page(section: Section) -> dict[str, Any]:
    plots = [
        {"svg": Markup(_themed(plot.svg())), "caption": plot.caption, "is_wide": plot.is_wide}
        for plot in section.plots
    ]
    return {"title": section.title, "text": section.text, "plots": plots}


def _themed(svg: str) -> str:
    return svg.replace(report_plots.PAPER, "var(--card)")


def _csv(table: pa.Table) -> bytes:
    # A column of nothing but nulls has no type that CSV knows.
    fields = [
        field.with_type(pa.string()) if pa.types.is_null(field.type) else field
        for field in table.schema
    ]
    sink = pa.BufferOutputStream()
    pyarrow.csv.write_csv(table.cast(pa.schema(fields)), sink)
    return bytes(sink.getvalue().to_pybytes())


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
