"""Residual networks with activations before the convolutions.

He et al., "Identity Mappings in Deep Residual Networks", ECCV 2016: batch norm and ReLU come before
each convolution, nothing stands on the path from block to block, and one more batch norm and ReLU
follow the last sum.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .resnet import conv


class PreActResNet18(nn.Module):
    """18 layers for small images: a 3x3 stem, four stages of two blocks; 512 features.

    Names of modules as in kuangliu/pytorch-cifar; `bn` is the last batch norm of the paper, which
    is not there. A linear layer follows where another `feature_dim` is asked for.
    """

    def __init__(self, in_shape: tuple[int, int, int], feature_dim: int = 512) -> None:
        super().__init__()
        self.conv1 = conv(in_shape[0], 64, 3, 1)
        self.layer1 = nn.Sequential(PreActBlock(64, 64, 1), PreActBlock(64, 64, 1))
        self.layer2 = nn.Sequential(PreActBlock(64, 128, 2), PreActBlock(128, 128, 1))
        self.layer3 = nn.Sequential(PreActBlock(128, 256, 2), PreActBlock(256, 256, 1))
        self.layer4 = nn.Sequential(PreActBlock(256, 512, 2), PreActBlock(512, 512, 1))
        self.bn = nn.BatchNorm2d(512)
        self.project = nn.Identity() if feature_dim == 512 else nn.Linear(512, feature_dim)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b D"]:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(images)))))
        out: Tensor = self.project(torch.relu(self.bn(x)).mean(dim=(2, 3)))
        return out


class PreActBlock(nn.Module):
    """Batch norm, ReLU, 3x3; the same again; a 1x1 shortcut from the first ReLU where the shape
    changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = conv(channels, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, 1)
        self.shortcut: nn.Sequential | None = None
        if stride != 1 or channels != width:
            self.shortcut = nn.Sequential(conv(channels, width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        active = torch.relu(self.bn1(x))
        out: Tensor = self.conv2(torch.relu(self.bn2(self.conv1(active))))
        return out + (x if self.shortcut is None else self.shortcut(active))
