"""What a graph sweep works on: the store of a run, or a file of features, searched once."""

from __future__ import annotations

from typing import Any, Literal, cast

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..cluster.columns import join_labels, read_columns
from ..cluster.label import METRICS, encode
from ..graph_store.knn_graph import knn_graph
from ..graph_store.local_store import LocalStore
from ..trainers.run_dir import RunDir
from .graph_points import Snapshot

Metric = Literal["cosine", "euclidean"]


def is_run(uri: str) -> bool:
    """Whether there is a run's folder."""
    return RunDir(uri).exists("config.toml")


def search(
    features: Float[Tensor, "n D"],
    labels: Int64[Tensor, " n"],
    num_classes: int,
    *,
    k: int,
    metric: Metric,
) -> Snapshot:
    """The exact kNN graph of the features, for all numbers of neighbours up to `k`.

    Raises:
        ValueError: NaN in the features, or `k` is not below their number.
    """
    if k >= len(features):
        raise ValueError(
            f"the sweep asks for up to k = {k} neighbours, but there are {len(features)} rows; "
            f"lower k to at most {len(features) - 1}"
        )
    view = knn_graph(features, k, metric, slack=0).as_view()
    return Snapshot(view.neighbor_ids, view.similarity, view.distances, labels, num_classes, metric)


def snapshot_of_run(uri: str, *, k: int) -> Snapshot:
    """The features and labels in a run's store; samples that could not be read are left out.

    Raises:
        ValueError: The run has no store.
    """
    run = RunDir(uri)
    if not run.exists("store"):
        raise ValueError(
            f"{uri} has no snapshot of a store: its method uses no graph, or it has not reached "
            "its first checkpoint; save the network's features and give these instead"
        )
    store = LocalStore.restore(run.child("store"), device="cpu")
    ids = torch.arange(store.spec.num_nodes)
    ids = ids[store.read("present", ids)]
    return search(
        store.read("features", ids),
        store.read("labels", ids),
        store.spec.num_classes,
        k=k,
        metric=store.spec.metric,
    )


def snapshot_of_features(uri: str, labels: str | None, *, k: int, metric: str) -> Snapshot:
    """Features and labels of a file, as `labelmesh label` reads them.

    Args:
        labels: A second file, where the first has no labels.

    Raises:
        ValueError: Something is missing, or does not fit.
    """
    if metric not in METRICS:
        raise ValueError(f"metric = {metric!r}: known are {', '.join(METRICS)}")
    columns = read_columns(uri)
    if columns.features is None:
        raise ValueError(f"{uri}: no features in it; name the array or column 'features'")
    if labels is not None:
        columns = join_labels(columns, read_columns(labels), labels)
    if columns.features is None or columns.labels is None:
        raise ValueError(f"{uri}: no labels in it; give them with --labels FILE")
    classes, encoded = encode(columns.labels)
    x: Any = np.ascontiguousarray(columns.features, np.float32)
    rows = torch.from_numpy(x if x.flags.writeable else x.copy())
    return search(rows, torch.from_numpy(encoded), len(classes), k=k, metric=cast(Metric, metric))
