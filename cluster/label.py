"""Labels for embeddings that somebody else's network made: no training, one graph, one solver."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ..graph_store.affinity import check_kind
from ..graph_store.kernels.knn import Metric
from ..graph_store.knn_graph import knn_graph
from ..graph_store.labeling import METHODS, Propagation, Propagator
from ..graph_store.labeling_round import Folds, found_while_held_out
from ..graph_store.recall import Recall

METRICS = ("euclidean", "cosine")
OnStage = Callable[[str], None]

__all__ = [
    "METHODS",
    "METRICS",
    "Labeling",
    "Solved",
    "check_options",
    "encode",
    "label_features",
    "make_labeling",
    "solve_array",
    "to_table",
]


@dataclass(frozen=True)
class Labeling:
    """A label for every node.

    Attributes:
        labels: (n,) int64, -1 where no label reaches the node.
        confidence: (n,) float64 in [0, 1], comparable inside one labeling; 0 where label is -1.
        given: (n,) bool: the label was given, not found.
    """

    labels: NDArray[np.int64]
    confidence: NDArray[np.float64]
    given: NDArray[np.bool_]

    @property
    def coverage(self) -> float:
        """Share of the nodes without a given label that got one."""
        asked = ~self.given
        return float((self.labels[asked] >= 0).mean()) if asked.any() else 1.0


@dataclass(frozen=True)
class Solved:
    """What a graph says, in class numbers 0..C-1; -1 where it says nothing.

    Attributes:
        found: (n,) labels.
        confidence: (n,) share of the label.
        held_out: (n,) what the graph says where a row's own label is held out; -1 elsewhere.
        recall: Of an approximate graph.
    """

    found: NDArray[np.int64]
    confidence: NDArray[np.float64]
    held_out: NDArray[np.int64]
    recall: Recall | None = None


def label_features(
    features: NDArray[Any],
    labels: NDArray[np.int64],
    *,
    method: str = "poisson",
    k: int = 20,
    metric: str = "euclidean",
    sigma: float = float("inf"),
) -> Labeling:
    """Label every row from the few labels given, along the kNN graph of the features.

    Class numbers need not be contiguous; those found are those given. Confidence is the share of
    the label in the node's class distribution, see `graph_store.labeling`.

    Args:
        features: (n, D) finite numbers.
        labels: (n,) class numbers, -1 = unlabeled.
        method, metric: One of METHODS and of METRICS.
        sigma: Longest step of a density path; the other methods do not read it.

    Raises:
        ValueError: The arrays do not fit each other, there is no label, or no such method.
    """
    how = check_options(method, metric, sigma)
    if labels.shape != (len(features),):
        raise ValueError(
            f"{len(features)} rows of features but labels of shape {labels.shape}; "
            "give one label per row, -1 = unlabeled"
        )
    classes, encoded = encode(labels)
    rows = np.ascontiguousarray(features, np.float32)
    solved = solve_array(rows, encoded, len(classes), how, k=k, metric=metric)
    return make_labeling(solved, labels, classes)


def check_options(method: str, metric: str, sigma: float, **options: Any) -> Propagation:
    """What is asked for, if there is such a thing.

    Args:
        options: Further ones of `Propagation`.

    Raises:
        ValueError: No such method, metric or affinity.
    """
    if metric not in METRICS:
        raise ValueError(f"metric = {metric!r}: known are {', '.join(METRICS)}")
    check_kind(options.get("affinity", "self_tuning"), metric)
    return Propagation(method=method, sigma=sigma, **options)


def encode(labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The classes in ascending order, and the labels as numbers of classes.

    Raises:
        ValueError: There is no label, or one below -1.
    """
    if len(labels) and labels.min() < -1:
        raise ValueError(f"label {labels.min()} is neither a class from 0 nor -1 = unlabeled")
    given = labels >= 0
    classes = np.unique(labels[given])
    if not len(classes):
        raise ValueError(f"none of the {len(labels)} rows has a label (all are -1); label a few")
    return classes, np.where(given, np.searchsorted(classes, labels), -1).astype(np.int64)


def solve_array(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    num_classes: int,
    how: Propagation,
    *,
    k: int,
    metric: str,
    folds: Folds | None = None,
    on_stage: OnStage = lambda stage: None,
) -> Solved:
    """Label rows by exact neighbours in this process, searched once for all folds.

    Args:
        labels: Class numbers 0..C-1, -1 = unlabeled.
        folds: Labels to hold out in turn.
        on_stage: Told what begins.

    Raises:
        ValueError: What `knn_graph` and `Propagator.solve` refuse.
    """
    on_stage(f"finding {k} neighbours of {len(features):,} rows (exact)")
    x = torch.from_numpy(features if features.flags.writeable else features.copy())
    graph = knn_graph(x, k, cast(Metric, metric), slack=0)
    view = graph.as_view()
    on_stage(f"solving {how.method}")
    propagator, given = Propagator(view, how), torch.from_numpy(labels)
    solved = propagator.solve(given, num_classes)
    held_out = torch.full_like(given, -1)
    if folds is not None:
        held_out = found_while_held_out(
            propagator,
            view.node_ids,
            given,
            folds,
            num_classes,
            lambda number: on_stage(f"holding out fold {number + 1} of {folds.count}"),
        )
    return Solved(solved.labels.numpy(), solved.confidence.numpy(), held_out.numpy(), graph.recall)


def make_labeling(
    solved: Solved, labels: NDArray[np.int64], classes: NDArray[np.int64]
) -> Labeling:
    """The result in the user's class numbers; `labels` as they were given."""
    decoded = np.where(solved.found < 0, -1, classes[solved.found]).astype(np.int64)
    return Labeling(decoded, np.minimum(solved.confidence, 1.0), labels >= 0)


def to_table(
    labeling: Labeling, keys: NDArray[Any] | None, names: NDArray[Any] | None = None
) -> pa.Table:
    """The labeling as a table in row order: `key` (or `row`), `label`, `confidence`, `source`.

    `source` is "given", "graph", or "none" where nothing reaches the node. With `names` of the
    classes 0, 1, ... labels are names, missing where there is none; else numbers, -1 there.
    """
    source = pa.DictionaryArray.from_arrays(
        pa.array(np.where(labeling.given, 0, np.where(labeling.labels < 0, 2, 1)), pa.int8()),
        pa.array(["given", "graph", "none"]),
    )
    label = pa.array(labeling.labels, pa.int64())
    if names is not None:
        numbers = pa.array(labeling.labels, pa.int64(), mask=labeling.labels < 0)
        label = pa.DictionaryArray.from_arrays(numbers, pa.array(names.tolist(), pa.string()))
        label = label.cast(pa.string())
    rows = np.arange(len(labeling.labels))
    return pa.table(
        {
            "row" if keys is None else "key": pa.array(rows if keys is None else keys),
            "label": label,
            "confidence": pa.array(labeling.confidence, pa.float64()),
            "source": source.cast(pa.string()),
        }
    )
