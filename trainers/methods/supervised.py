"""The baseline: cross-entropy on the given labels alone."""

from __future__ import annotations

from torch import nn

from ..labeling import onehot
from ..layers.classifier import LinearClassifier
from ..losses import soft_cross_entropy
from ..method import Batch, Loss, Method, Network, NetworkCall, Phase


class Supervised(Method):
    """Trains on labeled nodes only; no graph, no pseudo-labels."""

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("supervised", "labeled"),)

    @property
    def uses_graph(self) -> bool:
        return False

    def build(self, backbone: nn.Module, feature_dim: int, num_classes: int) -> Network:
        return LinearClassifier(backbone, feature_dim, num_classes)

    def loss(self, net: NetworkCall, batch: Batch) -> Loss:
        """Mean cross-entropy of the weak view over the labeled rows of the batch."""
        labeled = batch.labels >= 0
        logits = net(batch.view("weak", labeled)).logits
        total = soft_cross_entropy(logits, onehot(batch.labels[labeled], logits.shape[1]))
        return Loss(total, {"supervised": total.detach()})
