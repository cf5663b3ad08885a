"""The plain network: backbone and one linear classifier; it looks at no neighbours."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from ...graph_store.view import Neighborhood
from ..method import Network


class LinearClassifier(Network):
    """`logits = classifier(backbone(x))`."""

    def __init__(self, backbone: nn.Module, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.backbone = backbone
        self.classifier = nn.Linear(feature_dim, num_classes)

    def features(self, inputs: Tensor) -> Float[Tensor, "b D"]:
        out: Tensor = self.backbone(inputs)
        return out

    def head(
        self, features: Float[Tensor, "b D"], neighborhood: Neighborhood | None
    ) -> Float[Tensor, "b C"]:
        """Logits; `neighborhood` is ignored."""
        out: Tensor = self.classifier(features)
        return out
