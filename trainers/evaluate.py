"""Accuracy of networks and of pseudo-labels, against the truth that training never sees.

The only reader of the manifest's `truth` column inside the trainers. The loop holds an `Evaluator`
and gets numbers from it; the truth itself stays in here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ..datasets.reader import Reader
from ..datasets.schema import UNLABELED, NodeBatch
from ..datasets.splits import Split
from ..datasets.truth import load_truth
from ..graph_store.store import GraphStore
from .batches import NodeReader, Views, neighborhood_to
from .engine import Comm
from .method import Network
from .metrics import accuracy, confusion_matrix

SplitName = Literal["val", "test"]
MakeReader = Callable[[Tensor, Tensor], NodeReader]
"""From manifest rows and labels to a reader of them; collective over the ranks."""


@dataclass(frozen=True)
class NetworkScore:
    accuracy: float
    confusion: Int64[Tensor, "C C"]


@dataclass(frozen=True)
class LabelScore:
    """Accuracy of the pseudo-labels that count (weight > 0), and how many they are."""

    accuracy: float
    num_judged: int


class Evaluator:
    """Scores networks on the held-out splits and pseudo-labels on the run's nodes.

    A network that predicts from base rows sees the samples of a chunk together: chunks are cut by
    position in the split alone.
    """

    def __init__(
        self,
        uri: str,
        split: Split,
        make_reader: MakeReader,
        *,
        num_classes: int,
        views: Views,
        device: torch.device,
        comm: Comm,
        chunk: int = 512,
    ) -> None:
        self._uri = uri
        self._make_reader = make_reader
        self._rows = {"val": split.val_rows, "test": split.test_rows}
        self._node_rows = split.rows
        self._node_labels = split.labels
        self.num_classes = num_classes
        self._views = views
        self._device = device
        self._comm = comm
        self._chunk = chunk
        self._readers: dict[str, NodeReader] = {}
        self._node_truth: Tensor | None = None

    def has(self, split: SplitName) -> bool:
        return len(self._rows[split]) > 0

    @torch.no_grad()
    def network(
        self,
        network: Network,
        split: SplitName,
        *,
        store: GraphStore | None = None,
        hops: int = 0,
        k: int = 1,
    ) -> NetworkScore:
        """Accuracy on a held-out split; collective over the ranks.

        With `hops` > 0 the head sees the neighbours that each sample's features find in the
        store's last round (DAG, section 3, last paragraph).
        """
        rows = self._rows[split]
        reader = self._reader(split)
        truth = load_truth(self._uri, rows)
        counts = torch.zeros(self.num_classes, self.num_classes, dtype=torch.int64)
        step = self._comm.world_size * self._chunk
        for start in range(self._comm.rank * self._chunk, len(rows), step):
            batch = reader.read(torch.arange(start, min(start + self._chunk, len(rows))))
            predicted = predict_batch(
                network,
                self._views["plain"](batch.inputs.to(self._device), torch.Generator()),
                store=store,
                hops=hops,
                k=k,
            ).argmax(1)
            counts += confusion_matrix(truth[batch.node_ids], predicted, self.num_classes)
        counts = self._comm.all_sum(counts)
        return NetworkScore(accuracy(counts), counts)

    def pseudo_labels(self, store: GraphStore, round: int) -> LabelScore:
        """Accuracy over the unlabeled nodes that round `round` gave a label."""
        judged, right = 0, 0
        for ids in torch.split(torch.arange(len(self._node_rows)), 65_536):
            pseudo = store.pseudo_labels(ids, round=round)
            truth = self._truth_of_nodes()[ids]
            counts = (pseudo.weight > 0) & (self._node_labels[ids] == UNLABELED) & (truth >= 0)
            judged += int(counts.sum())
            right += int((pseudo.probs.argmax(1) == truth)[counts].sum())
        return LabelScore(right / judged if judged else float("nan"), judged)

    def node_accuracy(self, predicted: Int64[Tensor, " n"]) -> float:
        """Accuracy of labels over the nodes whose own label was hidden; -1 is left out."""
        truth = self._truth_of_nodes()
        judged = (self._node_labels == UNLABELED) & (truth >= 0) & (predicted >= 0)
        return float((predicted == truth)[judged].float().mean()) if judged.any() else float("nan")

    def truth_for_report(self, node_ids: Int64[Tensor, " m"]) -> Int64[Tensor, " m"]:
        """True labels of a few nodes, for the pictures of a finished run; -1 = unknown."""
        return self._truth_of_nodes()[node_ids]

    def samples_for_report(self, node_ids: Int64[Tensor, " m"]) -> NodeBatch:
        """A few nodes as they lie on disk, for the pictures of a finished run."""
        reader = Reader(self._uri, self._node_rows, self._node_labels, cache_bytes=0)
        return reader.read(node_ids)

    def _reader(self, split: SplitName) -> NodeReader:
        if split not in self._readers:
            rows = self._rows[split]
            labels = torch.full((len(rows),), UNLABELED)
            self._readers[split] = self._make_reader(rows, labels)
        return self._readers[split]

    def _truth_of_nodes(self) -> Tensor:
        if self._node_truth is None:
            self._node_truth = load_truth(self._uri, self._node_rows)
        return self._node_truth


@torch.no_grad()
def predict_batch(
    network: Network, inputs: Tensor, *, store: GraphStore | None, hops: int, k: int
) -> Tensor:
    """Class probabilities, float32 on the CPU, of normalised inputs."""
    return batch_logits(network, inputs, store=store, hops=hops, k=k).softmax(1).cpu()


def batch_logits(
    network: Network, inputs: Tensor, *, store: GraphStore | None, hops: int, k: int
) -> Float[Tensor, "b C"]:
    """Logits, float32, of normalised inputs.

    Gradients reach the inputs through the features; which neighbours these find in the store is a
    constant to them.
    """
    features = network.features(inputs)
    neighborhood = None
    if hops:
        if store is None:
            raise ValueError("this method predicts with neighbours: it needs the run's store")
        found = store.query_neighborhood(features.detach().float().cpu(), k=k, hops=hops)
        neighborhood = neighborhood_to(found, features.device)
    return network.head(features, neighborhood).float()
