"""Labels for embeddings that somebody else's network made: no training, one graph, one solver.

Files in: `.npy` (features alone), `.npz` and `.parquet` (features, perhaps labels and keys), at any
fsspec URI. File out: Parquet with `key` (or `row`, where the input has no keys), `label`,
`confidence` and `source` ("given", "graph" or "none": nothing reaches the node).
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, cast

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from ..graph_store import solvers
from ..graph_store.affinity import Affinity
from ..graph_store.kernels.knn import Metric
from ..graph_store.knn_graph import KnnGraph, knn_graph

METHODS = ("poisson", "laplace", "local_global", "density_paths")
METRICS = ("euclidean", "cosine")

_FEATURE_NAMES = ("features", "feature", "embeddings", "embedding", "x", "X")
_LABEL_NAMES = ("labels", "label", "y")
_KEY_NAMES = ("keys", "key", "node_id")


@dataclass(frozen=True)
class Columns:
    """What a file holds, row by row; None where it has no such column.

    Attributes:
        features: (n, D) float32.
        labels: (n,) int64, -1 = unlabeled.
        keys: (n,) names of the rows.
    """

    features: np.ndarray | None
    labels: np.ndarray | None
    keys: np.ndarray | None


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


def read_columns(uri: str) -> Columns:
    """Read features, labels and keys from one file, whichever of them it has.

    Raises:
        ValueError: The format is not known or the arrays are not what is needed.
        FileNotFoundError: There is no such file.
    """
    ending = PurePosixPath(uri).suffix.lower()
    if ending not in {".npy", ".npz", ".parquet"}:
        raise ValueError(f"{uri}: cannot read {ending or 'this'} files; use .npy, .npz or .parquet")
    with fsspec.open(uri, "rb") as file:
        content = io.BytesIO(file.read())
    try:
        columns = _parquet(content) if ending == ".parquet" else _numpy(content)
    except (ValueError, OSError, EOFError, pa.ArrowException) as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"{uri}: not a readable {ending} file: {reason[0]}") from None
    return _checked(columns, uri)


def join_labels(columns: Columns, labels: Columns, uri: str) -> Columns:
    """Take the labels of a second file: by key where both have keys, by row otherwise.

    Raises:
        ValueError: The second file has no labels, or keys or lengths do not fit.
    """
    if labels.labels is None:
        raise ValueError(f"{uri}: no labels in it; name the column 'label'")
    if columns.keys is not None and labels.keys is not None:
        return replace(columns, labels=_labels_by_key(columns.keys, labels, uri))
    assert columns.features is not None
    if len(labels.labels) != len(columns.features):
        raise ValueError(
            f"{uri}: {len(labels.labels)} labels for {len(columns.features)} rows of features; "
            "give one per row (-1 = unlabeled), or a 'key' column in both files"
        )
    return replace(columns, labels=labels.labels)


def to_table(labeling: Labeling, keys: np.ndarray | None) -> pa.Table:
    """The labeling as an Arrow table, in row order."""
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


def write_table(table: pa.Table, uri: str) -> None:
    """Write Parquet at any fsspec URI; the folder is made where it is missing."""
    filesystem, path = fsspec.core.url_to_fs(uri)
    filesystem.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
    with filesystem.open(path, "wb") as file:
        pq.write_table(table, file)


def _numpy(content: io.BytesIO) -> Columns:
    loaded: Any = np.load(content, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        if loaded.ndim == 1:
            return Columns(None, loaded, None)
        return Columns(loaded, None, None)
    return _named({name: loaded[name] for name in loaded.files})


def _parquet(content: io.BytesIO) -> Columns:
    table = pq.read_table(content)
    wanted = [n for n in table.column_names if n in _FEATURE_NAMES + _LABEL_NAMES + _KEY_NAMES]
    arrays: dict[str, np.ndarray] = {}
    for name in wanted:
        column = table.column(name).combine_chunks()
        if isinstance(column.type, pa.ListType | pa.LargeListType | pa.FixedSizeListType):
            if len(pc.unique(pc.list_value_length(column))) > 1 or column.null_count:
                raise ValueError(f"the rows of {name!r} are not all of one length")
            flat = column.flatten().to_numpy(zero_copy_only=False)
            arrays[name] = flat.reshape(len(column), -1)
        else:
            arrays[name] = column.to_numpy(zero_copy_only=False)
    return _named(arrays)


def _named(arrays: dict[str, np.ndarray]) -> Columns:
    def first(names: Iterable[str]) -> np.ndarray | None:
        return next((arrays[name] for name in names if name in arrays), None)

    features = first(_FEATURE_NAMES)
    if features is None:
        wide = [value for value in arrays.values() if value.ndim == 2]
        features = wide[0] if len(wide) == 1 else None
    return Columns(features, first(_LABEL_NAMES), first(_KEY_NAMES))


def _checked(columns: Columns, uri: str) -> Columns:
    features, labels = columns.features, columns.labels
    if features is not None:
        if features.ndim != 2 or features.dtype.kind not in "fiu":
            raise ValueError(
                f"{uri}: features of shape {features.shape} and type {features.dtype}; "
                "give numbers of shape (rows, width)"
            )
        features = features.astype(np.float32)
    if labels is not None:
        if labels.ndim != 1 or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{uri}: labels of shape {labels.shape} and type {labels.dtype}; "
                "give one whole number per row, -1 = unlabeled"
            )
        labels = labels.astype(np.int64)
    return Columns(features, labels, columns.keys)


def _labels_by_key(keys: np.ndarray, labels: Columns, uri: str) -> np.ndarray:
    theirs = cast(np.ndarray, labels.keys).astype(str)
    order = np.argsort(theirs, kind="stable")
    ours = keys.astype(str)
    sorted_ours = np.argsort(ours, kind="stable")
    at = np.searchsorted(ours[sorted_ours], theirs[order])
    at = np.minimum(at, len(ours) - 1)
    unknown = ours[sorted_ours][at] != theirs[order]
    if unknown.any():
        raise ValueError(
            f"{uri}: {int(unknown.sum())} keys have no features, the first is "
            f"{str(theirs[order][unknown][0])!r}"
        )
    out = np.full(len(ours), -1, np.int64)
    out[sorted_ours[at]] = cast(np.ndarray, labels.labels)[order]
    return out
