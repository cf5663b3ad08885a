"""The backbone for inputs that are embeddings already."""

from __future__ import annotations

from torch import Tensor, nn


class Mlp(nn.Module):
    """Two layers with batch norm between: `D -> width -> feature_dim`."""

    def __init__(self, in_shape: tuple[int], feature_dim: int, width: int = 256) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(in_shape[0], width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, feature_dim),
        )

    def forward(self, embeddings: Tensor) -> Tensor:
        out: Tensor = self.layers(embeddings)
        return out
