"""One linear layer on unit features for two tasks: classes, and clusters that change."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ...graph_store.view import Neighborhood
from ..method import ModelOutput, Network


class SharedClassifier(Network):
    """CycleCluster's network (Sellars et al. 2021, section IV): `outputs = W (s v) + b`, where v is
    the backbone's unit feature and the classes are the first C of the outputs.

    Attributes:
        scale: s; 1 in the paper. Unit features make small logits: the fewer the steps, the more a
            larger s helps.
    """

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        num_classes: int,
        *,
        num_outputs: int,
        scale: float = 1.0,
    ) -> None:
        """A layer with max(num_classes, num_outputs) outputs."""
        super().__init__()
        self.feature_dim = feature_dim
        self.num_classes = num_classes
        self.scale = scale
        self.backbone = backbone
        self.classifier = nn.Linear(feature_dim, max(num_classes, num_outputs))

    def features(self, inputs: Tensor) -> Float[Tensor, "b D"]:
        """Rows of length 1."""
        return functional.normalize(self.backbone(inputs), dim=1)

    def head(
        self, features: Float[Tensor, "b D"], neighborhood: Neighborhood | None
    ) -> Float[Tensor, "b C"]:
        """Logits of the classes; `neighborhood` is ignored."""
        return self._outputs(features)[:, : self.num_classes]

    def forward(self, inputs: Tensor, neighborhood: Neighborhood | None = None) -> ModelOutput:
        features = self.features(inputs)
        outputs = self._outputs(features)
        return ModelOutput(features, outputs[:, : self.num_classes], outputs)

    def _outputs(self, features: Tensor) -> Tensor:
        out: Tensor = self.classifier(self.scale * features)
        return out
