"""A network that predicts with base rows: the graph learning layer instead of its own head."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ...graph_store.view import Neighborhood
from ..method import Base, Network
from .graph_learning import GraphLearningLayer

INSIDE_LOG = 1e-8
"""Added to probabilities before their logarithm is taken, as the authors do."""


class GraphClassifier(Network):
    """Features of a trained network, classes from the graph of the batch and the base rows.

    The rows of a batch and the base rows are the nodes of one graph, so a row's prediction depends
    on the rows it comes with: they show where the data lie. It does not depend on their order, nor
    on rows in other components of the graph. Rows that no path connects to a base row get the
    uniform distribution.

    Args:
        network: Makes the features.
        layer: Its k is lowered where the graph has too few rows.
    """

    base_features: Tensor
    base_labels: Tensor

    def __init__(self, network: Network, layer: GraphLearningLayer, base: Base) -> None:
        super().__init__()
        self.network, self.layer = network, layer
        self.feature_dim = network.feature_dim
        self.num_classes = base.num_classes
        self.register_buffer("base_features", base.features)
        self.register_buffer("base_labels", base.labels)
        self.train(network.training)

    def features(self, inputs: Tensor) -> Float[Tensor, "b D"]:
        return self.network.features(inputs)

    def head(
        self, features: Float[Tensor, "b D"], neighborhood: Neighborhood | None
    ) -> Float[Tensor, "b C"]:
        """Logarithms of the class probabilities; `neighborhood` is ignored."""
        base = Base(self.base_features, self.base_labels, self.num_classes)
        return log_probs_with_base(self.layer, features, base)


def log_probs_with_base(
    layer: GraphLearningLayer, features: Float[Tensor, "b D"], base: Base
) -> Float[Tensor, "b C"]:
    """`log(U + 1e-8)` of the rows `features`, in one graph with the base rows.

    Both kinds of features are scaled to length 1 first.
    """
    if not features.shape[0]:
        return features.new_zeros(0, base.num_classes)
    nodes = nn.functional.normalize(torch.cat([features.float(), base.features.float()]), dim=1)
    unlabeled = base.labels.new_full((features.shape[0],), -1)
    labels: Int64[Tensor, " n"] = torch.cat([unlabeled, base.labels])
    probs: Tensor = fitting(layer, len(labels))(nodes, labels, num_classes=base.num_classes)
    return (probs + INSIDE_LOG).log()


def fitting(layer: GraphLearningLayer, num_rows: int) -> GraphLearningLayer:
    """The layer, with fewer neighbours where a graph of `num_rows` rows has no k of them."""
    if layer.k < num_rows:
        return layer
    smaller = copy.copy(layer)
    smaller.k = max(1, num_rows - 1)
    return smaller
