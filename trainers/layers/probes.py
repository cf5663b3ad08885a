"""Classifiers that judge features as they come: a standardised linear one, and the nearest."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ...graph_store.view import Neighborhood
from ..method import Base, Network
from .classifier import LinearClassifier

INSIDE_LOG = 1e-8
"""Added to probabilities before their logarithm: that of a class without a vote is finite."""


class StandardizedClassifier(LinearClassifier):
    """`logits = classifier((z - mean) / std)` with batch norm's statistics and no weights of its.

    He et al., "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022, appendix A.1: one
    learning rate then serves features of any scale. The features themselves stay as they are.
    """

    def __init__(self, backbone: nn.Module, feature_dim: int, num_classes: int) -> None:
        super().__init__(backbone, feature_dim, num_classes)
        self.standardize = nn.BatchNorm1d(feature_dim, affine=False)

    def head(
        self, features: Float[Tensor, "b D"], neighborhood: Neighborhood | None
    ) -> Float[Tensor, "b C"]:
        """Logits; `neighborhood` is ignored."""
        return super().head(self.standardize(features), neighborhood)


class NeighborVote(Network):
    """Classes by a weighted vote of the most similar base rows (see `vote`).

    Args:
        base: Who votes; without them all classes are alike.
    """

    base_features: Tensor
    base_labels: Tensor

    def __init__(
        self, backbone: nn.Module, feature_dim: int, *, k: int, temperature: float, base: Base
    ) -> None:
        super().__init__()
        self.backbone, self.feature_dim = backbone, feature_dim
        self.k, self.temperature, self.num_classes = k, temperature, base.num_classes
        unit = nn.functional.normalize(base.features.float(), dim=1)
        self.register_buffer("base_features", unit)
        self.register_buffer("base_labels", base.labels)

    def features(self, inputs: Tensor) -> Float[Tensor, "b D"]:
        out: Tensor = self.backbone(inputs)
        return out

    def head(
        self, features: Float[Tensor, "b D"], neighborhood: Neighborhood | None
    ) -> Float[Tensor, "b C"]:
        """Logarithms of the class probabilities; `neighborhood` is ignored."""
        if not len(self.base_labels):
            return features.new_zeros(len(features), self.num_classes)
        base = Base(self.base_features, self.base_labels, self.num_classes)
        return (vote(features, base, k=self.k, temperature=self.temperature) + INSIDE_LOG).log()

    def with_base(self, base: Base) -> NeighborVote:
        """The same features, and these base rows."""
        out = NeighborVote(
            self.backbone, self.feature_dim, k=self.k, temperature=self.temperature, base=base
        )
        out.train(self.training)
        return out


def vote(
    features: Float[Tensor, "b D"], base: Base, *, k: int, temperature: float
) -> Float[Tensor, "b C"]:
    """Class probabilities from the k most similar base rows.

    `p_c ~ sum over j in kNN(i) of exp(s_ij / T) [y_j = c]` with cosine similarities s: Wu et al.,
    "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", CVPR 2018, section
    3.4, as DINO is evaluated (Caron et al., ICCV 2021). Their tau is our T. Which of equally
    similar rows are taken is open.

    Args:
        k: All base rows where there are fewer.

    Cost:
        One b x m matrix of similarities to the m base rows.
    """
    labels: Int64[Tensor, " m"] = base.labels
    unit = nn.functional.normalize(features.float(), dim=1)
    rows = nn.functional.normalize(base.features.float(), dim=1)
    near = (unit @ rows.T).topk(min(k, len(labels)), dim=1)
    # only ratios matter: the largest weight is 1, whatever the temperature
    weight = ((near.values - near.values[:, :1]) / temperature).exp()
    classes = nn.functional.one_hot(labels[near.indices], base.num_classes).to(weight.dtype)
    votes = torch.einsum("bk,bkc->bc", weight, classes)
    return votes / votes.sum(dim=1, keepdim=True)
