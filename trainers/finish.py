"""What a run leaves behind: the last round, the test accuracy, labels, model and report data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..datasets.schema import DatasetInfo
from .checkpoint import plain_state
from .evaluate import NetworkScore
from .loop import Training, predictor, refresh
from .method import OWN_PREDICTION, Network
from .refresh import extract

_NONE, _GIVEN, _GRAPH, _NETWORK = 0, 1, 2, 3
SOURCES = ("none", "given", "graph", "network")
_REPORT_POINTS = 2000
_REPORT_IMAGES = 48


@dataclass(frozen=True)
class NodeLabels:
    """The run's answer for every node.

    Attributes:
        label: -1 for a node whose sample could not be read.
        confidence: The averaged network's probability of that label, 1 where it was given: the
            network's opinion on what the graph says, comparable between methods.
        source: Indexes SOURCES; "none" where label is -1.
    """

    label: Int64[Tensor, " n"]
    confidence: Float[Tensor, " n"]
    source: Int64[Tensor, " n"]


def finish(training: Training, info: DatasetInfo, keys: pa.Array, rows: Tensor) -> None:
    """Last round, deliverables, and the one reading of the test split, unless the run is told to
    leave it alone; every rank calls it.

    Args:
        keys: Of the data set's samples, by manifest row.
        rows: The manifest row of each node.
    """
    store = training.source.store
    final_round = training.rounds.final
    if store is not None:
        refresh(training, final_round)
    network = predictor(training)
    labels = _node_labels(training, network, final_round)
    score = score_test(training, network) if training.spec.train.score_test else None
    if training.is_first:
        result: dict[str, float] = {
            **({} if score is None else {"test/accuracy": score.accuracy}),
            "nodes/accuracy": training.evaluator.node_accuracy(labels.label),
            "num_labeled": float((training.labels >= 0).sum()),
            "num_nodes": float(len(training.labels)),
            "epochs": float(training.epoch),
            "steps": float(training.step),
        }
        if store is not None:
            pseudo = training.evaluator.pseudo_labels(store, final_round)
            result["pseudo/accuracy"] = pseudo.accuracy
            store.snapshot(training.run.child("store"))
        _write_labels(training, labels, keys.take(pa.array(rows.numpy())), final_round)
        _write_model(training, network, info)
        _write_report_data(training, info, labels, score, final_round)
        baseline = (
            training.run.read_json("baseline.json") if training.run.exists("baseline.json") else {}
        )
        training.run.write_json("result.json", {**result, **baseline})
    training.engine.comm.barrier()


def score_test(training: Training, network: Network) -> NetworkScore:
    """Accuracy of the averaged network on the test split, logged; collective."""
    score = training.evaluator.network(
        network,
        "test",
        store=training.source.store,
        hops=training.method.predict_hops,
        k=training.spec.graph.k,
    )
    training.log(
        "metrics.jsonl",
        {
            "kind": "eval",
            "epoch": training.epoch,
            "split": "test",
            "network": "ema",
            "accuracy": score.accuracy,
        },
    )
    return score


def _node_labels(training: Training, network: Network, round: int) -> NodeLabels:
    """Given labels, else the graph's where it gave one, else the network's; collective.

    Every node's row is filled by one rank, so the sum over ranks is the whole; rows that no rank
    could read stay at label -1.
    """
    comm = training.engine.comm
    num_nodes = len(training.labels)
    label_plus_1 = torch.zeros(num_nodes, dtype=torch.int64)
    confidence = torch.zeros(num_nodes)
    source = torch.full((num_nodes,), _NONE)
    for ids, labels, beliefs, origins in _answers(training, network, round):
        label_plus_1[ids], confidence[ids], source[ids] = labels + 1, beliefs, origins
    label = comm.all_sum(label_plus_1) - 1
    confidence, source = comm.all_sum(confidence), comm.all_sum(source)
    given = training.labels >= 0
    label[given], confidence[given], source[given] = training.labels[given], 1.0, _GIVEN
    return NodeLabels(label, confidence, source)


def _answers(
    training: Training, network: Network, round: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """(ids, labels, confidences, sources) of this rank's share of the readable nodes."""
    store, comm = training.source.store, training.engine.comm
    num_nodes, chunk = len(training.labels), training.spec.train.extract_batch_size
    if store is None:
        for part in extract(
            network,
            training.source,
            num_nodes=num_nodes,
            chunk=chunk,
            comm=comm,
            neighbors=None,
        ):
            beliefs, labels = part.probs.max(1)
            yield part.node_ids, labels, beliefs, torch.full_like(labels, _NETWORK)
        return
    for start in range(comm.rank * chunk, num_nodes, comm.world_size * chunk):
        ids = torch.arange(start, min(start + chunk, num_nodes))
        ids = ids[store.read("present", ids, round=round)]
        pseudo = store.pseudo_labels(ids, round=round)
        probs = store.read("probs", ids, round=round)
        own = pseudo.extra.get(OWN_PREDICTION, torch.zeros(len(ids), dtype=torch.bool))
        from_graph = (pseudo.weight > 0) & ~own.bool()
        labels = torch.where(from_graph, pseudo.probs.argmax(1), probs.argmax(1))
        beliefs = probs.gather(1, labels[:, None])[:, 0]
        yield ids, labels, beliefs, torch.where(from_graph, _GRAPH, _NETWORK)


def _write_labels(training: Training, labels: NodeLabels, keys: pa.Array, round: int) -> None:
    rounds = np.where(labels.source.numpy() == _GRAPH, round, -1)
    table = pa.table(
        {
            "key": keys,
            "label": pa.array(labels.label.numpy()),
            "confidence": pa.array(labels.confidence.numpy()),
            "source": pa.array(np.array(SOURCES)[labels.source.numpy()]),
            "round": pa.array(rounds.astype(np.int64)),
        }
    )
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    training.run.write_bytes("labels.parquet", sink.getvalue().to_pybytes())


def _write_model(training: Training, network: Network, info: DatasetInfo) -> None:
    state = plain_state(network)
    training.run.write_bytes("model.safetensors", safetensors.torch.save(state))
    training.run.write_json(
        "model.json",
        {
            "shape": list(info.shape),
            "kind": info.kind,
            "classes": list(info.classes),
            "num_nodes": len(training.labels),
        },
    )


def _write_report_data(
    training: Training,
    info: DatasetInfo,
    labels: NodeLabels,
    score: NetworkScore | None,
    round: int,
) -> None:
    """Arrays behind the report's pictures (`report_data.npz`), a bounded sample of the nodes."""
    store = training.source.store
    num_nodes = len(training.labels)
    generator = torch.Generator().manual_seed(training.spec.seed)
    some = torch.randperm(num_nodes, generator=generator)[:_REPORT_POINTS].sort().values
    given = (training.labels >= 0).nonzero().flatten()
    found = some[labels.source[some] >= _GRAPH]
    points = torch.cat([given[:200], found])
    unlabeled = found[:_REPORT_IMAGES]
    data: dict[str, Any] = {
        "class_names": np.array(info.classes),
        "features_label": labels.label[points].numpy(),
        "features_kind": (training.labels[points] >= 0).long().numpy(),
    }
    if score is not None:
        data["confusion"] = score.confusion.numpy()
    if store is not None:
        data["density"] = store.read("density", some, round=round).numpy()
        data["features2d_source"] = store.read("features", points, round=round).numpy()
        extra = store.pseudo_labels(some, round=round).extra
        if "path_length" in extra:
            data["path_length"] = extra["path_length"].numpy()
    else:
        data["features2d_source"] = _features(training, points)
    if info.kind == "image" and len(unlabeled):
        batch = training.evaluator.samples_for_report(unlabeled)
        data |= {
            "sample_images": batch.inputs.numpy(),
            "sample_label": labels.label[batch.node_ids].numpy(),
            "sample_confidence": labels.confidence[batch.node_ids].numpy(),
            "sample_truth": training.evaluator.truth_for_report(batch.node_ids).numpy(),
            "sample_source": np.array(SOURCES)[labels.source[batch.node_ids].numpy()],
        }
    training.run.write_arrays("report_data.npz", data)


@torch.no_grad()
def _features(training: Training, points: Tensor) -> Any:
    source, parts = training.source, []
    for ids in torch.split(points, training.spec.train.extract_batch_size):
        inputs = source.reader.read(ids).inputs.to(source.device)
        view = source.views["plain"](inputs, torch.Generator())
        parts.append(training.ema.network.features(view).float().cpu())
    return torch.cat(parts).numpy()
