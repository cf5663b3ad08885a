"""Linear probe: multinomial logistic regression on frozen features, from the labeled nodes alone.

The baseline that every use of a pretrained backbone is measured by. Minimises the mean
cross-entropy of `softmax(W z + b)` plus `train.weight_decay / 2 |W|^2` by the run's optimiser
(with SGD; AdamW decays weights beside the loss); the bias is not decayed. Without `standardize` its
optimum is scikit-learn's `LogisticRegression(C=1 / (n * weight_decay))` of n labeled nodes.
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from ..labeling import onehot
from ..layers.classifier import LinearClassifier
from ..layers.probes import StandardizedClassifier
from ..losses import soft_cross_entropy
from ..method import Batch, Loss, Method, Network, NetworkCall, Phase


class LinearProbe(Method):
    """Trains one linear layer on features as they come; no graph, no pseudo-labels."""

    standardize: bool = Field(
        True, description="divide features by their spread over the labeled nodes first"
    )

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("probe", "labeled"),)

    @property
    def uses_graph(self) -> bool:
        return False

    @property
    def needs_frozen_backbone(self) -> bool:
        return True

    def build(self, backbone: nn.Module, feature_dim: int, num_classes: int) -> Network:
        kind = StandardizedClassifier if self.standardize else LinearClassifier
        return kind(backbone, feature_dim, num_classes)

    def loss(self, net: NetworkCall, batch: Batch) -> Loss:
        """Mean cross-entropy of the weak view over the labeled rows of the batch."""
        labeled = batch.labels >= 0
        logits = net(batch.view("weak", labeled)).logits
        total = soft_cross_entropy(logits, onehot(batch.labels[labeled], logits.shape[1]))
        return Loss(total, {"probe": total.detach()})
