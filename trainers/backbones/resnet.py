"""Residual networks (He et al., CVPR 2016)."""

from __future__ import annotations

from torch import Tensor, nn


class ResNet18(nn.Module):
    """ResNet-18 with the CIFAR stem: one 3x3 convolution, no pooling, then four stages.

    512 features; a linear layer follows where another `feature_dim` is asked for. Stages start
    at strides 1, 2, 2, 2, so 32x32 images end as 4x4 maps.
    """

    def __init__(self, in_shape: tuple[int, int, int], feature_dim: int = 512) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _conv3(in_shape[0], 64, 1), nn.BatchNorm2d(64), nn.ReLU(inplace=True)
        )
        blocks: list[nn.Module] = []
        channels = 64
        for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            blocks += [_Block(channels, width, stride), _Block(width, width, 1)]
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.project = nn.Identity() if feature_dim == 512 else nn.Linear(512, feature_dim)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.project(self.blocks(self.stem(images)).mean(dim=(2, 3)))
        return out


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, 1x1 where the shape changes."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _conv3(channels, width, stride),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            _conv3(width, width, 1),
            nn.BatchNorm2d(width),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != width:
            conv = nn.Conv2d(channels, width, 1, stride=stride, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = nn.functional.relu(self.body(x) + self.shortcut(x))
        return out


def _conv3(channels: int, width: int, stride: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv
