"""A backbone that training leaves alone, and what of it is trained all the same."""

from __future__ import annotations

from torch import Tensor, nn


class Frozen(nn.Module):
    """A module without gradients that is always in eval mode: its batch norms do not move."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module.eval().requires_grad_(False)
        self.training = False

    def train(self, mode: bool = True) -> Frozen:
        """Stays in eval mode, whatever the network around it is told."""
        return super().train(False)

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.module(inputs)
        return out


def freeze(backbone: nn.Module, feature_dim: int) -> tuple[Frozen, nn.Module, int]:
    """Cut a backbone before its projection.

    Every backbone that projects to `feature_dim` does so by a linear layer named `project`, drawn
    from the run's seed. That one is trained.

    Returns:
        What is frozen, what is trained behind it (an identity where nothing is), and the numbers
        per input that pass between them.
    """
    project = getattr(backbone, "project", None)
    if not isinstance(project, nn.Linear):
        return Frozen(backbone), nn.Identity(), feature_dim
    backbone.project = nn.Identity()
    return Frozen(backbone), project, project.in_features
