"""The backbone for inputs that are features already."""

from __future__ import annotations

from torch import Tensor, nn


class Identity(nn.Module):
    """Hands embeddings on as they are, and images as rows of their pixels; nothing is trained.

    Raises:
        ValueError: `feature_dim` is not the number of values of an input.
    """

    def __init__(self, in_shape: tuple[int, ...], feature_dim: int) -> None:
        super().__init__()
        width = 1
        for side in in_shape:
            width *= side
        if width != feature_dim:
            raise ValueError(
                f"model.backbone = 'identity' gives the {width} values of an input as they are, "
                f"but model.feature_dim = {feature_dim}; set it to {width}"
            )

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1)
