"""Labels for embeddings that somebody else's network made: no training, one graph, one solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import pyarrow as pa
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from ..graph_store import solvers
from ..graph_store.affinity import Affinity
from ..graph_store.kernels.knn import Metric
from ..graph_store.knn_graph import KnnGraph, knn_graph

METHODS = ("poisson", "laplace", "local_global", "density_paths")
METRICS = ("euclidean", "cosine")


@dataclass(frozen=True)
class Labeling:
    """A label for every node.

    Attributes:
        labels: (n,) int64, -1 where no label reaches the node.
        confidence: (n,) float64 in [0, 1], comparable inside one labeling; 0 where label is -1.
        given: (n,) bool: the label was given, not found.
    """

    labels: np.ndarray
    confidence: np.ndarray
    given: np.ndarray

    @property
    def coverage(self) -> float:
        """Share of the nodes without a given label that got one."""
        asked = ~self.given
        return float((self.labels[asked] >= 0).mean()) if asked.any() else 1.0


def label_features(
    features: np.ndarray,
    labels: np.ndarray,
    *,
    method: str = "poisson",
    k: int = 20,
    metric: str = "euclidean",
    sigma: float = float("inf"),
) -> Labeling:
    """Label every row from the few labels given, along the kNN graph of the features.

    Class numbers need not be contiguous; those found are those given. Confidence is the share of
    the winning class in the node's class distribution: rows of `laplace` and `local_global`
    divided by their sum; for `poisson`, whose scores are differences of potentials, a softmax at
    the scale of a component's root mean square; for `density_paths`, which knows only labels, the
    share of the k neighbours that end with the same label.

    Args:
        features: (n, D) finite numbers.
        labels: (n,) class numbers, -1 = unlabeled.
        method, metric: One of METHODS and of METRICS.
        sigma: Longest step of a density path; the other methods do not read it.

    Raises:
        ValueError: The arrays do not fit each other, there is no label, or no such method.
    """
    for name, value, known in (("method", method, METHODS), ("metric", metric, METRICS)):
        if value not in known:
            raise ValueError(f"{name} = {value!r}: known are {', '.join(known)}")
    if labels.shape != (len(features),):
        raise ValueError(
            f"{len(features)} rows of features but labels of shape {labels.shape}; "
            "give one label per row, -1 = unlabeled"
        )
    given = labels >= 0
    classes = np.unique(labels[given])
    if not len(classes):
        raise ValueError(f"none of the {len(labels)} rows has a label (all are -1); label a few")
    encoded = np.where(given, np.searchsorted(classes, labels), -1).astype(np.int64)
    graph = knn_graph(np.ascontiguousarray(features, np.float32), k=k, metric=cast(Metric, metric))
    if method == "density_paths":
        found, confidence = _by_paths(graph, encoded, sigma)
    else:
        found, confidence = _by_solver(graph, encoded, method, len(classes))
    found = np.where(given, encoded, found)
    confidence = np.where(given, 1.0, np.where(found < 0, 0.0, confidence))
    decoded = np.where(found < 0, -1, classes[found]).astype(np.int64)
    return Labeling(decoded, confidence, given)


def to_table(labeling: Labeling, keys: np.ndarray | None) -> pa.Table:
    """The labeling as a table in row order: `key` (or `row`), `label`, `confidence`, `source`.

    `source` is "given", "graph", or "none" where nothing reaches the node.
    """
    source = np.where(labeling.given, "given", np.where(labeling.labels < 0, "none", "graph"))
    rows = np.arange(len(labeling.labels))
    return pa.table(
        {
            "row" if keys is None else "key": pa.array(rows if keys is None else keys),
            "label": pa.array(labeling.labels, pa.int64()),
            "confidence": pa.array(labeling.confidence, pa.float64()),
            "source": pa.array(source.tolist(), pa.string()),
        }
    )


def _by_solver(
    graph: KnnGraph, labels: np.ndarray, method: str, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    weights = graph.affinity("self_tuning")
    matrix = weights.to_scipy()
    _, component = connected_components(matrix, directed=False)
    reached = np.isin(component, component[labels >= 0])
    if method == "poisson":
        shares = _poisson_by_component(matrix, component, labels, num_classes)
    elif method == "laplace":
        shares = solvers.laplace(weights, labels, on_unreached="uniform", num_classes=num_classes)
    else:
        shares = solvers.local_global(
            weights, labels, balance_classes=True, num_classes=num_classes
        )
    shares = np.maximum(shares, 0.0)
    total = np.maximum(shares.sum(axis=1), np.finfo(np.float64).tiny)
    return np.where(reached, shares.argmax(axis=1), -1), shares.max(axis=1) / total


def _poisson_by_component(
    matrix: csr_array, component: np.ndarray, labels: np.ndarray, num_classes: int
) -> np.ndarray:
    """Poisson learning on each component by itself, against the mean of its own labels.

    Over the whole graph a component whose labels are not distributed like all labels has sources
    that do not sum to zero: there is no solution, and that of least squares puts a component with
    labels of one class half into other classes. A component's only class is certain.
    """
    shares = np.zeros((len(labels), num_classes))
    order = np.argsort(component, kind="stable")
    ends = np.cumsum(np.bincount(component))
    for index in np.unique(component[labels >= 0]):
        rows = order[ends[index - 1] if index else 0 : ends[index]]
        given = labels[rows]
        classes = np.unique(given[given >= 0])
        if len(classes) == 1:
            shares[rows, classes[0]] = 1.0
            continue
        encoded = np.where(given < 0, -1, np.searchsorted(classes, given))
        potential = solvers.poisson(Affinity.from_scipy(matrix[rows][:, rows]), encoded)
        scale = float(np.sqrt(np.mean(potential**2))) or 1.0
        lifted = np.exp((potential - potential.max(axis=1, keepdims=True)) / scale)
        shares[np.ix_(rows, classes)] = lifted
    return shares


def _by_paths(graph: KnnGraph, labels: np.ndarray, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    found = np.asarray(solvers.density_paths(graph, labels, sigma=sigma).labels)
    final = np.where(labels >= 0, labels, found)
    return found, (final[np.asarray(graph.ids)] == final[:, None]).mean(axis=1)
