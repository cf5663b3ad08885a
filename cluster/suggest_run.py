"""Suggestions for a finished run: its graph, what its network and its graph say, its images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy.typing import NDArray
from torch import Tensor

from ..datasets.reader import Reader
from ..datasets.splits import Split
from ..graph_store.labeling import Propagation, Propagator
from ..graph_store.local_store import LocalStore
from ..graph_store.local_view import LocalGraphView
from ..graph_store.solvers.arrays import Array, as_labels
from ..graph_store.suggest import Wanted
from ..trainers.config import method_name
from ..trainers.launch import SPLIT_FILE
from ..trainers.prepare import load_config_text
from ..trainers.run_dir import RunDir
from .suggest import Suggestions, choose


@dataclass(frozen=True)
class RunNodes:
    """What a finished run knows about its nodes 0..n-1.

    Attributes:
        view: Its last graph.
        features: Of the averaged network.
        probs: Mean of what the network and, where it says anything, the graph say.
        labels: Given labels, -1 = unlabeled.
        present: False for samples that could not be read.
        keys: Of the samples.
        classes: Names.
        data_uri, rows: Where the samples are.
    """

    view: LocalGraphView
    features: Float[Tensor, "n D"]
    probs: Float[Tensor, "n C"]
    labels: Int64[Tensor, " n"]
    present: Bool[Tensor, " n"]
    keys: NDArray[Any]
    classes: NDArray[Any]
    data_uri: str
    rows: Int64[Tensor, " n"]

    def images(self, node_ids: NDArray[np.int64]) -> dict[int, NDArray[np.uint8]]:
        """Images (c, h, w) of those nodes that can be read; none where samples are no images.

        Raises:
            ValueError: The data set is not where it was.
        """
        reader = Reader(self.data_uri, self.rows, self.labels)
        if reader.info.kind != "image":
            return {}
        batch = reader.read(torch.from_numpy(node_ids))
        return dict(zip(batch.node_ids.tolist(), batch.inputs.numpy()))


def load_run(uri: str) -> RunNodes:
    """Read a finished run.

    Raises:
        ValueError: No finished run is there, or one that used no graph.
    """
    run = RunDir(uri)
    if not run.exists("model.json") or not run.exists("labels.parquet"):
        raise ValueError(f"{uri} holds no finished run (model.json or labels.parquet is missing)")
    spec = load_config_text(run.read_text("config.toml"))
    if not run.exists("store"):
        raise ValueError(
            f"{uri} has no graph: its method {method_name(spec.method)!r} uses none; save the "
            "network's features and give these to `labelmesh suggest`"
        )
    split = Split.load(run.child(SPLIT_FILE))
    store = LocalStore.restore(run.child("store"), device="cpu")
    ids = torch.arange(len(split.rows))
    neighbor_ids, similarity = store.neighbors(ids)
    distances = store.read("distances", ids)
    table = run.read_table("labels.parquet", ["key"])
    return RunNodes(
        view=LocalGraphView(neighbor_ids, similarity, distances, store.spec.metric),
        features=store.read("features", ids),
        probs=_beliefs(store, ids),
        labels=split.labels,
        present=store.read("present", ids),
        keys=np.asarray(table["key"].to_pylist()),
        classes=np.asarray(run.read_json("model.json")["classes"]),
        data_uri=spec.data.uri,
        rows=split.rows,
    )


def suggest_of_run(
    run: RunNodes, labels: Array | None, *, count: int, method: str | None, wanted: Wanted
) -> Suggestions:
    """Suggestions on the run's graph.

    Args:
        labels: Given since the run, one per node, -1 = none.
        method: Solves for class distributions on the run's graph; None: what the run says.

    Raises:
        ValueError: Labels that do not fit the run, or fewer unlabeled nodes than `count`.
    """
    given = run.labels
    if labels is not None:
        found = as_labels(labels)
        if found.shape != given.shape or int(found.max()) >= len(run.classes):
            raise ValueError(
                f"labels must be one per node of the run ({len(given)}), classes 0.."
                f"{len(run.classes) - 1} or -1; got {len(found)}, up to {int(found.max())}"
            )
        given = torch.where(found >= 0, found, given)
    probs = run.probs.to(torch.float64)
    if method is not None:
        probs = Propagator(run.view, Propagation(method)).solve(given, len(run.classes)).probs
    suggested = choose(run.view, probs, given, run.present, count=count, wanted=wanted)
    return replace(suggested, keys=run.keys[suggested.node_ids], classes=run.classes)


def _beliefs(store: LocalStore, ids: Int64[Tensor, " n"]) -> Float[Tensor, "n C"]:
    network, pseudo = store.read("probs", ids), store.pseudo_labels(ids)
    says = (pseudo.weight > 0)[:, None]
    return torch.where(says, (network + pseudo.probs) / 2, network)
