"""Residual networks (He et al., "Deep Residual Learning for Image Recognition", CVPR 2016).

Modules bear torchvision's names (conv1, bn1, layer1.0.conv1, ..., layer4.1.bn2; no fc), so a state
dict in its layout loads as it is. As there, the stride of a bottleneck lies in its 3x3 convolution
(the paper has it in the first 1x1).
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

Stem = Literal["auto", "small", "imagenet"]
Pixels = Literal["symmetric", "imagenet"]

SMALL_SIDE = 64
"""Images of up to this side get the small stem where nothing else is asked for."""

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


class ResNet(nn.Module):
    """Stem, four stages of residual blocks, global average, and a linear layer where another
    `feature_dim` than the blocks' own is asked for.

    Stems: "small" is one 3x3 convolution of stride 1, so that 32x32 images end as 4x4 maps;
    "imagenet" is 7x7 of stride 2 and a 3x3 maximum of stride 2, which ends there from 128x128.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        feature_dim: int,
        *,
        block: type[BasicBlock] | type[Bottleneck],
        depths: tuple[int, int, int, int],
        stem: Stem = "auto",
        pixels: Pixels = "symmetric",
    ) -> None:
        """Draw the weights from the global RNG.

        Args:
            depths: Number of blocks in each stage.
            stem: "auto" = "small" for images of up to 64 pixels a side, "imagenet" above.
            pixels: What the convolutions see. "symmetric": the inputs as they come, in -1..1;
                "imagenet": the same images standardised by ImageNet's mean and standard deviation
                (their averages over the channels for other than three), as weights in
                torchvision's layout were trained.
        """
        super().__init__()
        channels, *sides = in_shape
        if stem == "auto":
            stem = "small" if max(sides) <= SMALL_SIDE else "imagenet"
        self._shift, self._scale = _standardisation(channels) if pixels == "imagenet" else ((), ())
        self.conv1 = conv(channels, 64, 7, 2) if stem == "imagenet" else conv(channels, 64, 3, 1)
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, 1) if stem == "imagenet" else nn.Identity()
        inner = 512 * block.expansion
        self.layer1 = _stage(block, 64, 64, depths[0], stride=1)
        self.layer2 = _stage(block, 64 * block.expansion, 128, depths[1], stride=2)
        self.layer3 = _stage(block, 128 * block.expansion, 256, depths[2], stride=2)
        self.layer4 = _stage(block, 256 * block.expansion, 512, depths[3], stride=2)
        self.project = nn.Identity() if feature_dim == inner else nn.Linear(inner, feature_dim)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b D"]:
        x = images
        if self._scale:
            shift = x.new_tensor(self._shift).view(-1, 1, 1)
            x = (x - shift) * x.new_tensor(self._scale).view(-1, 1, 1)
        x = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        out: Tensor = self.project(x.mean(dim=(2, 3)))
        return out


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, 1x1 where the shape changes."""

    expansion = 1

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = _shortcut(channels, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1 to `width` channels, 3x3, 1x1 to four times as many, and a shortcut."""

    expansion = 4

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = conv(channels, width, 1, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = conv(width, width * self.expansion, 1, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.downsample = _shortcut(channels, width * self.expansion, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return torch.relu(out + self.downsample(x))


def resnet18(
    in_shape: tuple[int, int, int],
    feature_dim: int = 512,
    *,
    stem: Stem = "auto",
    pixels: Pixels = "symmetric",
) -> ResNet:
    """Two basic blocks a stage; 512 features."""
    depths = (2, 2, 2, 2)
    return ResNet(in_shape, feature_dim, block=BasicBlock, depths=depths, stem=stem, pixels=pixels)


def resnet50(
    in_shape: tuple[int, int, int],
    feature_dim: int = 2048,
    *,
    stem: Stem = "auto",
    pixels: Pixels = "symmetric",
) -> ResNet:
    """3, 4, 6 and 3 bottlenecks; 2,048 features."""
    depths = (3, 4, 6, 3)
    return ResNet(in_shape, feature_dim, block=Bottleneck, depths=depths, stem=stem, pixels=pixels)


def conv(channels: int, width: int, size: int, stride: int) -> nn.Conv2d:
    """A convolution that keeps the side up to its stride. No bias: batch norm would take it away.
    Weights are normal with variance 2 / (width size^2) (He et al., ICCV 2015, by outputs)."""
    made = nn.Conv2d(channels, width, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    channels: int,
    width: int,
    depth: int,
    *,
    stride: int,
) -> nn.Sequential:
    inner = width * block.expansion
    rest = (block(inner, width, 1) for _ in range(depth - 1))
    return nn.Sequential(block(channels, width, stride), *rest)


def _shortcut(channels: int, width: int, stride: int) -> nn.Module:
    if stride == 1 and channels == width:
        return nn.Identity()
    return nn.Sequential(conv(channels, width, 1, stride), nn.BatchNorm2d(width))


def _standardisation(channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(shift, scale) with (x - shift) scale = (p - mean) / std for p = (x + 1) / 2."""
    mean: tuple[float, ...] = _MEAN
    std: tuple[float, ...] = _STD
    if channels != 3:
        mean, std = (sum(_MEAN) / 3,), (sum(_STD) / 3,)
    return tuple(2 * m - 1 for m in mean), tuple(1 / (2 * s) for s in std)
