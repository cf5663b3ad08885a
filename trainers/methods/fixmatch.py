"""FixMatch (Sohn et al., NeurIPS 2020): confident predictions of a weak view label a strong view.

Symbols: tau `threshold`, lambda_u `unlabeled_weight`.

Departure: the reference code sends labeled, weak and strong rows through one forward pass. Here
the weak unlabeled rows go first, without gradients: a third less work in the backward pass. In
training mode batch norm then normalises the weak rows among themselves, and the labeled and
strong rows among themselves; its running averages see both passes.
"""

from __future__ import annotations

from pydantic import Field
from torch import nn

from ..consistency import weak_and_strong
from ..labeling import onehot
from ..layers.classifier import LinearClassifier
from ..losses import consistency, soft_cross_entropy
from ..method import Batch, Loss, Method, Network, NetworkCall, Phase


class FixMatch(Method):
    """Supervised loss of weak views plus consistency of strong with weak views (eqs. 3-4)."""

    threshold: float = Field(
        0.95, ge=0, le=1, description="confidence below which a prediction is not used"
    )
    unlabeled_weight: float = Field(
        1.0, ge=0, description="weight of the unlabeled rows' loss (lambda_u)"
    )

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("mixed", "mixed"),)

    @property
    def uses_graph(self) -> bool:
        return False

    def build(self, backbone: nn.Module, feature_dim: int, num_classes: int) -> Network:
        return LinearClassifier(backbone, feature_dim, num_classes)

    def loss(self, net: NetworkCall, batch: Batch) -> Loss:
        """`l_s + lambda_u l_u`; a batch without unlabeled rows (warm-up) costs `l_s`."""
        given, strong, weak = weak_and_strong(net, batch)
        labels = batch.labels[batch.labels >= 0]
        supervised = soft_cross_entropy(given, onehot(labels, given.shape[1]))
        parts = {"supervised": supervised.detach()}
        if weak is None:
            return Loss(supervised, parts)
        unsupervised, passed = consistency(strong, weak, threshold=self.threshold)
        parts |= {"consistency": unsupervised.detach(), "passed": passed.float().mean()}
        return Loss(supervised + self.unlabeled_weight * unsupervised, parts)
