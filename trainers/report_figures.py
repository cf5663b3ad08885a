"""Which figures a report has, and what is said about each: a run's records in, sections out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from . import plots

Record = Mapping[str, Any]
ROUND_PARTS = ("extract", "search", "solve", "publish", "train")
_MAX_MAP_POINTS = 2000
_MIN_NEIGHBOR_MAP_POINTS = 50


@dataclass(frozen=True)
class Plot:
    """A figure, its file name and what is written below it."""

    name: str
    figure: Figure
    caption: str
    is_wide: bool = False

    def svg(self) -> str:
        return plots.as_svg(self.figure, name=self.name, description=self.caption)

    def png(self) -> bytes:
        return plots.as_png(self.figure)


@dataclass(frozen=True)
class Section:
    title: str
    text: str
    plots: tuple[Plot, ...]


def sections(
    *,
    metrics: Sequence[Record],
    baseline_metrics: Sequence[Record],
    rounds: Sequence[Record],
    result: Record,
    arrays: Mapping[str, np.ndarray],
    seed: int,
) -> list[Section]:
    """The sections that have at least one figure, in reading order."""
    made = [
        Section(
            "Training",
            "The averaged network is what is judged; the test split is read once, at the end.",
            _present(loss_plot(metrics, baseline_metrics), accuracy_plot(metrics, result)),
        ),
        Section(
            "Graph",
            "Between epochs features are extracted, neighbours searched again and labels moved "
            "along the graph.",
            _present(
                quality_plot(rounds),
                seconds_plot(rounds),
                density_plot(arrays),
                path_plot(arrays),
            ),
        ),
        Section(
            "Classes",
            "Which classes are taken for which, and how they lie in the space of features.",
            _present(confusion_plot(arrays), map_plot(arrays, seed)),
        ),
    ]
    return [section for section in made if section.plots]


def loss_plot(metrics: Sequence[Record], baseline_metrics: Sequence[Record]) -> Plot | None:
    """Loss by step; the parts are drawn where the method logs at least two.

    Phases that take turns have losses that do not compare, so each has a line of its own.
    """
    train = [r for r in metrics if r.get("kind") == "train" and "loss" in r]
    if not train:
        return None
    losses = _column(train, "loss")
    phases = [str(r.get("phase", "")) for r in train]
    turns = [p for p in dict.fromkeys(phases) if p != "warmup"]
    totals = {"total": losses}
    if len(turns) > 1:
        turns = list(dict.fromkeys(phases))
        totals = {f"total, {t}": _where(losses, [p == t for p in phases]) for t in turns}
    supervised = [r for r in baseline_metrics if r.get("kind") == "train" and "loss" in r]
    baseline = _column(supervised, "step"), _column(supervised, "loss")
    parts = _parts(train, losses)
    figure = plots.loss_curve(
        _column(train, "step"),
        totals,
        parts if len(parts) > 1 else {},
        baseline if supervised else None,
    )
    said = []
    for name, values in totals.items():
        seen = [v for v in values if not math.isnan(v)]
        said.append(f"{name} from {seen[0]:.3f} to {seen[-1]:.3f}")
    text = "; ".join(said)
    return Plot("loss", figure, f"Loss: {text}." if len(said) > 1 else f"In {text}.")


def _parts(train: Sequence[Record], losses: Sequence[float]) -> dict[str, list[float]]:
    """Named parts of the loss by record, NaN where there is none; those that are all of the loss
    wherever they are logged say nothing."""
    names = sorted({name for r in train for name in r.get("parts", {})})
    parts = {n: [float(r.get("parts", {}).get(n, math.nan)) for r in train] for n in names}
    return {
        name: values
        for name, values in parts.items()
        if any(not math.isnan(v) and v != total for v, total in zip(values, losses))
    }


def _where(values: Sequence[float], kept: Sequence[bool]) -> list[float]:
    return [v if keep else math.nan for v, keep in zip(values, kept)]


def accuracy_plot(metrics: Sequence[Record], result: Record) -> Plot | None:
    """Validation accuracy by epoch, with the final test scores; only where there is a validation
    split: two scores alone are better read in the table of methods."""
    held_out = [r for r in metrics if r.get("kind") == "eval" and r.get("split") == "val"]
    if not held_out:
        return None
    test, baseline = (_finite(result.get(f"{run}test/accuracy")) for run in ("", "baseline/"))
    accuracies = _column(held_out, "accuracy")
    figure = plots.accuracy_curve(
        _column(held_out, "epoch"), accuracies, test=test, baseline=baseline
    )
    caption = f"Best on the validation split: {_percent(max(accuracies))}."
    if test is not None:
        caption += f" Test: {_percent(test)}."
    return Plot("accuracy", figure, caption)


def quality_plot(rounds: Sequence[Record]) -> Plot | None:
    """Coverage and accuracy of pseudo-labels."""
    known = [r for r in rounds if r.get("coverage") is not None]
    if not known:
        return None
    accuracy = [_finite(r.get("pseudo_accuracy")) for r in known]
    figure = plots.label_quality(_column(known, "round"), _column(known, "coverage"), accuracy)
    caption = f"In the last round {_percent(known[-1]['coverage'])} of the unlabeled nodes have one"
    if accuracy[-1] is not None:
        caption += f", and {_percent(accuracy[-1])} of these are right"
    return Plot("pseudo_labels", figure, caption + ".")


def seconds_plot(rounds: Sequence[Record]) -> Plot | None:
    """Seconds by part of a round, for the parts that were timed."""
    present = [part for part in ROUND_PARTS if any(f"seconds_{part}" in r for r in rounds)]
    if not present:
        return None
    seconds = {p: [float(r.get(f"seconds_{p}") or 0.0) for r in rounds] for p in present}
    total = sum(sum(values) for values in seconds.values())
    slowest = max(seconds, key=lambda p: sum(seconds[p]))
    figure = plots.round_seconds(_column(rounds, "round"), seconds)
    share = _percent(sum(seconds[slowest]) / total) if total else "0 %"
    return Plot(
        "round_seconds", figure, f"{total:.1f} s in all rounds; {slowest} takes {share} of it."
    )


def density_plot(arrays: Mapping[str, np.ndarray]) -> Plot | None:
    """Histogram of node densities."""
    density = arrays.get("density", np.empty(0))
    if not len(density):
        return None
    figure = plots.histogram(
        "Density", density, x="mean similarity to the neighbours", color=plots.GREEN
    )
    middle = np.quantile(density[np.isfinite(density)], [0.05, 0.5, 0.95])
    low, half, high = (f"{value:.3f}" for value in middle)
    caption = f"Median {half}; nine in ten nodes lie between {low} and {high}."
    return Plot("density", figure, caption)


def path_plot(arrays: Mapping[str, np.ndarray]) -> Plot | None:
    """Histogram of the lengths of density paths."""
    lengths = arrays.get("path_length", np.empty(0))
    lengths = lengths[lengths >= 0]
    if not len(lengths):
        return None
    whole = lengths.astype(np.int64)
    if np.array_equal(whole, lengths):
        lengths = whole
    figure = plots.histogram("Path lengths", lengths, x="nodes on the path", color=plots.PURPLE)
    caption = f"Mean {lengths.mean():.1f} nodes, longest {lengths.max():.0f}."
    return Plot("path_length", figure, caption)


def confusion_plot(arrays: Mapping[str, np.ndarray]) -> Plot | None:
    """Confusion matrix of the test split; the caption names the commonest mistake."""
    counts = arrays.get("confusion")
    if counts is None or not counts.sum():
        return None
    names = class_names(arrays, len(counts))
    wrong = counts * ~np.eye(len(counts), dtype=bool)
    worst = np.unravel_index(wrong.argmax(), wrong.shape)
    caption = f"{_percent(np.trace(counts) / counts.sum())} right; no mistakes."
    if wrong.any():
        caption = (
            f"{_percent(np.trace(counts) / counts.sum())} right. Most often {names[worst[0]]} is "
            f"taken for {names[worst[1]]}: {counts[worst]} times."
        )
    figure = plots.confusion(counts, names)
    return Plot("confusion", figure, caption, is_wide=len(counts) > 20)


def map_plot(arrays: Mapping[str, np.ndarray], seed: int) -> Plot | None:
    """Features in the plane, coloured by label."""
    features, labels = arrays.get("features2d_source"), arrays.get("features_label")
    if features is None or labels is None or len(features) < 3:
        return None
    given = arrays.get("features_kind", np.zeros(len(labels))) > 0
    kept = _map_rows(given, seed)
    names = class_names(arrays, int(labels.max(initial=-1)) + 1)
    points, how = in_the_plane(features[kept], seed)
    figure = plots.feature_map(points, labels[kept], given[kept], names)
    caption = f"{len(kept):,} nodes by {how}; diamonds are the labels that were given."
    return Plot("features", figure, caption)


def in_the_plane(features: np.ndarray, seed: int) -> tuple[np.ndarray, str]:
    """Two coordinates per row: t-SNE from the principal components, or these for few rows."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    centered = features.astype(np.float64) - features.mean(axis=0, dtype=np.float64)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    # The sign of an axis is the solver's choice; fixing it makes the picture repeatable.
    signs = np.sign(axes[np.arange(len(axes)), np.abs(axes).argmax(axis=1)])
    projected = centered @ (axes * signs[:, None])[:50].T
    if projected.shape[1] < 2:
        projected = np.pad(projected, ((0, 0), (0, 1)))
    if len(features) < _MIN_NEIGHBOR_MAP_POINTS:
        return projected[:, :2], "principal components"
    start = 1e-4 * projected[:, :2] / max(float(projected[:, 0].std()), 1e-12)
    perplexity = min(30.0, len(features) / 4)
    tsne = TSNE(
        init=start.astype(np.float32),
        perplexity=perplexity,
        max_iter=500,
        random_state=seed,
        learning_rate="auto",
    )
    # One thread: sums in a fixed order, so that the picture is repeatable; and no waiting where
    # other processes use the cores.
    with threadpool_limits(1):
        return np.asarray(tsne.fit_transform(projected.astype(np.float32))), "t-SNE"


def _map_rows(given: np.ndarray, seed: int) -> np.ndarray:
    """At most 2,000 rows, the labeled ones first among them."""
    if len(given) <= _MAX_MAP_POINTS:
        return np.arange(len(given))
    shuffled = np.random.default_rng(seed).permutation(len(given))
    order = shuffled[np.argsort(~given[shuffled], kind="stable")]
    return np.sort(order[:_MAX_MAP_POINTS])


def class_names(arrays: Mapping[str, np.ndarray], num_classes: int) -> list[str]:
    """Names of the classes; their numbers where there are no names."""
    names = [str(name) for name in arrays.get("class_names", ())]
    return names + [str(index) for index in range(len(names), num_classes)]


def _present(*found: Plot | None) -> tuple[Plot, ...]:
    return tuple(plot for plot in found if plot is not None)


def _column(records: Sequence[Record], name: str) -> list[float]:
    return [float(record[name]) for record in records]


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
