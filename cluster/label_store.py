"""Labeling on a store: for approximate neighbours, and sharded for what one process cannot hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ..graph_store.facade import GraphStore
from ..graph_store.labeling import Propagation
from ..graph_store.labeling_round import Folds, LabelingRound
from ..graph_store.local_store import LocalStore
from ..graph_store.recall import Recall
from ..graph_store.store import KnnReport, StoreSpec
from ..graph_store.store_base import StoreBase
from .api import connect
from .feature_rows import FeatureRows, float_blocks
from .label import OnStage, Solved

# Rows that are asked of the store at once.
_READ_ROWS = 1 << 18


@dataclass(frozen=True)
class StoreTask:
    """What to label.

    Attributes:
        features, uri: Rows and where they come from, for errors.
        labels: Class numbers 0..C-1, -1 = unlabeled.
        spec: Shape of the store, and whether its neighbours are exact or refined until the measured
            recall is high enough; where that fails, they are searched exactly after all.
        folds: Labels to hold out in turn.
        on_stage: Told what begins.
    """

    features: FeatureRows
    uri: str
    labels: NDArray[np.int64]
    spec: StoreSpec
    how: Propagation
    folds: Folds | None
    on_stage: OnStage


def solve_on_shards(task: StoreTask, num_shards: int) -> Solved:
    """Label rows on `num_shards` actors of the Ray cluster in RAY_ADDRESS, or on a local Ray.

    Rows are read and sent block by block, float16 as it is; this process holds no more than one
    block and the results.

    Raises:
        ValueError: NaN in the features, a store that the cluster cannot hold, or what
            `Propagator.solve` refuses.
    """
    task.on_stage(f"starting {num_shards} shards")
    spec = task.spec
    with connect() as cluster:
        cluster.start()
        store = GraphStore.create(
            num_nodes=spec.num_nodes,
            dim=spec.dim,
            num_classes=spec.num_classes,
            k=spec.k,
            metric=spec.metric,
            num_shards=num_shards,
            dtype=spec.dtype,
            update=spec.update,
        )
        try:
            return _solve(store, task)
        finally:
            store.close()


def solve_on_local_store(task: StoreTask) -> Solved:
    """Label rows on a store in this process; see `solve_on_shards`."""
    return _solve(LocalStore(task.spec), task)


def _solve(store: StoreBase, task: StoreTask) -> Solved:
    num_rows, k = task.spec.num_nodes, task.spec.k
    task.on_stage(f"putting {num_rows:,} rows into the store")
    for start, block in float_blocks(task.features, task.uri, keep=task.spec.dtype):
        rows = torch.from_numpy(block if block.flags.writeable else block.copy())
        store.put(torch.arange(start, start + len(rows)), rows)
    given = np.flatnonzero(task.labels >= 0)
    store.put_labels(torch.from_numpy(given), torch.from_numpy(task.labels[given]))
    search = "approximate" if task.spec.update == "refine" else "exact"
    task.on_stage(f"finding {k} neighbours of {num_rows:,} rows ({search})")
    report = store.update_knn()
    held_out = f", and {task.folds.count} times with labels held out" if task.folds else ""
    task.on_stage(f"solving {task.how.method}{held_out}")
    store.refresh(LabelingRound(task.how, task.spec.num_classes, task.folds), round=0)
    return _read(store, num_rows, report)


def _read(store: StoreBase, num_rows: int, report: KnnReport) -> Solved:
    parts = [
        torch.arange(start, min(start + _READ_ROWS, num_rows))
        for start in range(0, num_rows, _READ_ROWS)
    ]
    found, confidence, held_out = (
        torch.cat([store.read(name, ids, round=0) for ids in parts]).numpy()
        for name in ("found", "confidence", "held_out")
    )
    recall = None if report.exact else Recall(report.recall, report.recall_low, 1.0, 0)
    return Solved(found, confidence, held_out, recall)
