"""k nearest neighbours: labeled nodes vote on frozen features. Nothing is trained.

The second baseline of every pretrained backbone (`layers/probes.py: vote`, with the equation). All
labeled nodes are base rows of prediction, so the model file holds their features and labels.
"""

from __future__ import annotations

import sys

import torch
from pydantic import Field
from torch import nn

from ..layers.probes import NeighborVote
from ..method import Base, Batch, Loss, Method, Network, NetworkCall, Phase


class Knn(Method):
    """Classes by a weighted vote of the most similar labeled nodes; no steps, no graph."""

    k: int = Field(20, ge=1, description="labeled nodes that vote; all where there are fewer")
    temperature: float = Field(
        0.07, gt=0, description="of the votes' weights exp(similarity / temperature)"
    )

    @property
    def phases(self) -> tuple[Phase, ...]:
        return ()

    @property
    def uses_graph(self) -> bool:
        return False

    @property
    def needs_frozen_backbone(self) -> bool:
        return True

    def predict_base(self, epochs: int) -> int:
        """All labeled nodes."""
        return sys.maxsize

    def build(self, backbone: nn.Module, feature_dim: int, num_classes: int) -> Network:
        nobody = Base(torch.zeros(0, feature_dim), torch.zeros(0, dtype=torch.int64), num_classes)
        return NeighborVote(
            backbone, feature_dim, k=self.k, temperature=self.temperature, base=nobody
        )

    def predictor(self, network: Network, base: Base) -> Network:
        assert isinstance(network, NeighborVote)
        return network.with_base(base)

    def loss(self, net: NetworkCall, batch: Batch) -> Loss:
        """There is none.

        Raises:
            ValueError: Always.
        """
        raise ValueError("method.name = 'knn' has no loss: it trains nothing")
