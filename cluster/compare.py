"""What the given labels are worth without a graph: a linear probe and plain nearest neighbours.

All are scored on the same held-out labels: stratified folds of the labeled rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..graph_store.labeling_round import Folds

MAX_FOLDS = 5
# More labels than this make a probe slow and its score no more certain.
MAX_LABELS = 5000
MAX_NEIGHBORS = 5


@dataclass(frozen=True)
class Comparison:
    """Share of the held-out labels that each way finds.

    Attributes:
        num_folds, num_held_out, num_used: Folds; labels that were held out once; labels that took
            part at all.
        graph: The chosen method.
        linear_probe: Logistic regression on standardised features.
        knn: Vote of the `knn_neighbors` nearest labeled rows.
    """

    num_folds: int
    num_held_out: int
    num_used: int
    graph: float
    linear_probe: float
    knn: float
    knn_neighbors: int


def make_folds(labels: NDArray[np.int64], seed: int) -> Folds | str:
    """Stratified folds of the labeled rows, or why there can be none.

    A class's rows are spread evenly over the folds, in random order; no class is ever held out as a
    whole. Of more than `MAX_LABELS` labels a stratified sample takes part.

    Args:
        labels: Class numbers 0..C-1, -1 = unlabeled.
    """
    rng = np.random.default_rng(seed)
    given = np.flatnonzero(labels >= 0)
    counts = np.bincount(labels[given])
    if counts.max() < 2:
        return (
            "every class has one label, and none can be held out; for a comparison give two or "
            "more labels of each class"
        )
    share = min(1.0, MAX_LABELS / len(given))
    num_folds = min(MAX_FOLDS, int(counts.max()))
    rows, folds, dealt = [], [], 0
    for number in np.flatnonzero(counts):
        own = rng.permutation(given[labels[given] == number])
        own = own[: max(min(2, len(own)), round(share * len(own)))]
        fold = np.full(1, -1)
        if len(own) > 1:
            # Going on where the last class ended keeps the folds of one size.
            fold = (dealt + np.arange(len(own))) % num_folds
            dealt += len(own)
        rows.append(own)
        folds.append(fold)
    order = np.argsort(np.concatenate(rows))
    node_ids, fold = np.concatenate(rows)[order], np.concatenate(folds)[order]
    return Folds(torch.from_numpy(node_ids), torch.from_numpy(fold), num_folds)


def compare(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    held_out: NDArray[np.int64],
    folds: Folds,
    *,
    metric: str,
) -> Comparison:
    """Score the graph, a linear probe and plain kNN on the same folds.

    Args:
        features, labels, held_out: Of the rows `folds.node_ids`: features, class numbers, and what
            the graph says when their fold is held out.
    """
    fold = folds.fold.numpy()
    is_scored = fold >= 0
    neighbors = _num_neighbors(labels, fold)
    linear, nearest = np.full_like(labels, -1), np.full_like(labels, -1)
    for train, test in _splits(fold, folds.count):
        linear[test] = linear_probe(features[train], labels[train], features[test])
        nearest[test] = knn(features[train], labels[train], features[test], neighbors, metric)
    graph, probe, plain = (
        float((found[is_scored] == labels[is_scored]).mean())
        for found in (held_out, linear, nearest)
    )
    return Comparison(
        folds.count, int(is_scored.sum()), len(labels), graph, probe, plain, neighbors
    )


def _splits(fold: NDArray[np.int64], num_folds: int) -> Iterator[tuple[Any, Any]]:
    for number in range(num_folds):
        if (fold == number).any():
            yield fold != number, fold == number


def _num_neighbors(labels: NDArray[np.int64], fold: NDArray[np.int64]) -> int:
    """At most 5, and no more than any class that is held out has left: else it could not win."""
    num_classes, num_folds = int(labels.max()) + 1, int(fold.max()) + 1
    held_out = np.unique(labels[fold >= 0])
    left = [
        int(np.bincount(labels[train], minlength=num_classes)[held_out].min())
        for train, _ in _splits(fold, num_folds)
    ]
    return max(1, min(MAX_NEIGHBORS, *left))


def linear_probe(
    x: NDArray[np.float32], y: NDArray[np.int64], queries: NDArray[np.float32]
) -> NDArray[np.int64]:
    """Classes of `queries` by logistic regression on the standardised rows `x` of classes `y`."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(np.unique(y)) == 1:
        return np.full(len(queries), y[0])
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    with warnings.catch_warnings():
        # A probe that is nearly converged is as good a measure.
        warnings.simplefilter("ignore", ConvergenceWarning)
        found: NDArray[np.int64] = probe.fit(x, y).predict(queries)
    return found


def knn(
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    queries: NDArray[np.float32],
    neighbors: int,
    metric: str,
) -> NDArray[np.int64]:
    """Classes of `queries` by vote of the nearest rows of `x`."""
    from sklearn.neighbors import KNeighborsClassifier

    voters = KNeighborsClassifier(neighbors, metric=metric).fit(x, y)
    found: NDArray[np.int64] = voters.predict(queries)
    return found
