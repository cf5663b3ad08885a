"""Labeling on the sharded store: for features that do not fit into one process."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ..graph_store.facade import GraphStore
from ..graph_store.labeling import Propagation
from ..graph_store.labeling_round import Folds, LabelingRound
from ..graph_store.recall import Recall
from ..graph_store.store import KnnReport, Metric
from .api import connect
from .feature_rows import FeatureRows, float_blocks
from .label import OnStage, Solved

# Rows that are asked of the store at once.
_READ_ROWS = 1 << 18


def solve_on_shards(
    features: FeatureRows,
    uri: str,
    labels: NDArray[np.int64],
    num_classes: int,
    how: Propagation,
    *,
    k: int,
    metric: str,
    num_shards: int,
    approximate: bool = False,
    folds: Folds | None = None,
    on_stage: OnStage = lambda stage: None,
) -> Solved:
    """Label rows on `num_shards` actors of the Ray cluster in RAY_ADDRESS, or on a local Ray.

    Rows are read and sent block by block, float16 as it is; this process holds no more than one
    block and the results.

    Raises:
        ValueError: NaN in the features, a store that the cluster cannot hold, or what
            `Propagator.solve` refuses.
    """
    on_stage(f"starting {num_shards} shards")
    with connect() as cluster:
        cluster._start()
        store = GraphStore.create(
            num_nodes=features.shape[0],
            dim=features.shape[1],
            num_classes=num_classes,
            k=k,
            metric=cast(Metric, metric),
            num_shards=num_shards,
            dtype="float16" if features.dtype == np.float16 else "float32",
            update="refine" if approximate else "exact",
        )
        try:
            on_stage(f"sending {features.shape[0]:,} rows to the shards")
            _fill(store, features, uri, labels)
            search = "approximate" if approximate else "exact"
            on_stage(f"finding {k} neighbours of {features.shape[0]:,} rows ({search})")
            report = store.update_knn()
            held_out = f", and {folds.count} times with labels held out" if folds else ""
            on_stage(f"solving {how.method}{held_out}")
            store.refresh(LabelingRound(how, num_classes, folds), round=0)
            return _read(store, features.shape[0], report)
        finally:
            store.close()


def _fill(store: Any, features: FeatureRows, uri: str, labels: NDArray[np.int64]) -> None:
    for start, block in float_blocks(features, uri, keep=store.spec.dtype):
        rows = torch.from_numpy(block if block.flags.writeable else block.copy())
        store.put(torch.arange(start, start + len(rows)), rows)
    given = np.flatnonzero(labels >= 0)
    store.put_labels(torch.from_numpy(given), torch.from_numpy(labels[given]))


def _read(store: Any, num_rows: int, report: KnnReport) -> Solved:
    parts = [
        torch.arange(start, min(start + _READ_ROWS, num_rows))
        for start in range(0, num_rows, _READ_ROWS)
    ]
    found, confidence, held_out = (
        torch.cat([store.read(name, ids, round=0) for ids in parts]).numpy()
        for name in ("found", "confidence", "held_out")
    )
    recall = None
    if not report.exact:
        recall = Recall(report.recall, report.recall_low, 1.0, 0)
    return Solved(found, confidence, held_out, recall)
