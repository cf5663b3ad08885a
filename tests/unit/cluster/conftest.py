"""A run's directory that no training was needed for."""

from __future__ import annotations

import io

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from labelmesh.datasets.manifest import load_index
from labelmesh.datasets.reader import Reader
from labelmesh.graph_store.local_store import LocalStore
from labelmesh.graph_store.store import StoreSpec
from labelmesh.graph_store.view import PseudoLabels
from labelmesh.trainers.config import load_config
from labelmesh.trainers.prepare import make_run_split
from labelmesh.trainers.run_dir import RunDir

NUM_NODES = 200
NOT_READ = 13


@pytest.fixture(scope="session")
def run(digits: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a run leaves, with pixels for features, and a graph that says something of few nodes."""
    folder = RunDir(str(tmp_path_factory.mktemp("runs") / "first"))
    changes = {"data.uri": digits, "data.num_nodes": NUM_NODES, "data.labels_per_class": 2}
    spec = load_config("dag-digits", changes)
    split = make_run_split(spec)
    folder.write_text("config.toml", spec.to_toml())
    classes = [f"digit {c}" for c in range(10)]
    folder.write_json("model.json", {"classes": classes, "shape": [1, 8, 8], "kind": "image"})
    split.save(folder.child("split.parquet"))
    ids = torch.arange(NUM_NODES)
    pixels = Reader(digits, split.rows, split.labels).read(ids).inputs.flatten(1).float()
    store = LocalStore(StoreSpec(NUM_NODES, 64, 10, k=8))
    store.put_labels(ids, split.labels)
    probs = torch.full((NUM_NODES, 10), 0.04)
    probs[:, 3] = 0.64
    read = ids[ids != NOT_READ]
    store.put(read, pixels[read], probs[read])
    store.update_knn()
    store.refresh(lambda view, state: disagreeing(), round=0)
    store.snapshot(folder.child("store"))
    keys = load_index(digits).keys.take(pa.array(split.rows.numpy()))
    sink = io.BytesIO()
    pq.write_table(pa.table({"key": keys}), sink)
    folder.write_bytes("labels.parquet", sink.getvalue())
    return folder.uri


def disagreeing() -> PseudoLabels:
    """The graph is sure that nodes 100 to 149 are of class 7, and says nothing of others."""
    probs, weight = torch.zeros(NUM_NODES, 10), torch.zeros(NUM_NODES)
    probs[100:150, 7], weight[100:150] = 1, 0.5
    return PseudoLabels(probs, weight)
