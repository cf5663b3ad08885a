"""Plain convolutional networks for small images; all end in `feature_dim` numbers per image."""

from __future__ import annotations

from torch import Tensor, nn

_SLOPE = 0.1


class SmallCnn(nn.Module):
    """Three blocks of convolutions for 8x8 to 32x32 images, made to train on a few CPU cores.

    Each block halves the image while it is larger than 4x4, so that 8x8 digits keep a 4x4 map
    for the last block. Global average pooling, then one linear layer to `feature_dim`.
    """

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        feature_dim: int,
        widths: tuple[int, int, int] = (32, 64, 128),
    ) -> None:
        super().__init__()
        channels, *sides = in_shape
        side = min(sides)
        layers: list[nn.Module] = []
        for block, width in enumerate(widths):
            layers += _conv(channels, width)
            if block > 0:
                layers += _conv(width, width)
            if side > 4:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            channels = width
        self.blocks = nn.Sequential(*layers)
        self.project = nn.Linear(channels, feature_dim)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.project(self.blocks(images).mean(dim=(2, 3)))
        return out


class Cnn13(nn.Module):
    """The 13-layer network of Mean Teacher, LPDSSL and DAG (without its classifier).

    3 x 128, pool, 3 x 256, pool, 512 without padding, 256 1x1, 128 1x1, global average; leaky
    ReLU 0.1 and batch norm after each convolution. Mean Teacher (Tarvainen and Valpola, 2017,
    table 5) drops out half of the activations after each pool; off by default, as in LPDSSL's
    successors that use the graph on these features.

    The features are the 128 averages; a linear layer follows only where another `feature_dim`
    is asked for.
    """

    def __init__(
        self, in_shape: tuple[int, int, int], feature_dim: int = 128, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *_conv(in_shape[0], 128),
            *_conv(128, 128),
            *_conv(128, 128),
            nn.MaxPool2d(2),
            nn.Dropout(dropout),
            *_conv(128, 256),
            *_conv(256, 256),
            *_conv(256, 256),
            nn.MaxPool2d(2),
            nn.Dropout(dropout),
            # an 8x8 image is 2x2 here, too small for a convolution without padding
            *_conv(256, 512, padding=0 if min(in_shape[1:]) >= 12 else 1),
            *_conv(512, 256, size=1, padding=0),
            *_conv(256, 128, size=1, padding=0),
        )
        self.project = nn.Identity() if feature_dim == 128 else nn.Linear(128, feature_dim)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.project(self.blocks(images).mean(dim=(2, 3)))
        return out


class MnistCnn(nn.Module):
    """The "small CNN" of GLL's experiments on MNIST (and of Wang and Osher, 2021, before it).

    Two 3x3 convolutions of 32, pool, two of 64, pool, all without padding and with ReLU; then
    linear to 200, ReLU, linear to `feature_dim` (200 in the paper). No batch norm.

    Departure: the authors' code drops out half of the 200 activations; off by default here, as
    dropout draws from the global RNG.
    """

    def __init__(
        self, in_shape: tuple[int, int, int], feature_dim: int = 200, dropout: float = 0.0
    ) -> None:
        super().__init__()
        channels, *sides = in_shape
        self.blocks = nn.Sequential(
            *_plain_conv(channels, 32, padding=0),
            *_plain_conv(32, 32, padding=0),
            nn.MaxPool2d(2),
            *_plain_conv(32, 64, padding=0),
            *_plain_conv(64, 64, padding=0),
            nn.MaxPool2d(2),
        )
        height, width = (((side - 4) // 2 - 4) // 2 for side in sides)
        self.hidden = nn.Linear(64 * height * width, 200)
        self.dropout = nn.Dropout(dropout)
        self.project = nn.Linear(200, feature_dim)

    def forward(self, images: Tensor) -> Tensor:
        hidden = nn.functional.relu(self.hidden(self.blocks(images).flatten(1)))
        out: Tensor = self.project(self.dropout(hidden))
        return out


class FashionCnn(nn.Module):
    """The network of GLL's comparison with an MLP head on Fashion-MNIST (their table 1).

    3x3 convolutions of 64, 128, pool, 256, pool, each with ReLU, and one linear layer to
    `feature_dim` (128 in the paper). No batch norm.

    The text has a ReLU behind the linear layer; like the authors' code this has a leaky one of
    0.01, for a row of zeros cannot be normalised.
    """

    def __init__(self, in_shape: tuple[int, int, int], feature_dim: int = 128) -> None:
        super().__init__()
        channels, *sides = in_shape
        self.blocks = nn.Sequential(
            *_plain_conv(channels, 64),
            *_plain_conv(64, 128),
            nn.MaxPool2d(2),
            *_plain_conv(128, 256),
            nn.MaxPool2d(2),
        )
        height, width = (side // 4 for side in sides)
        self.project = nn.Linear(256 * height * width, feature_dim)

    def forward(self, images: Tensor) -> Tensor:
        features = self.project(self.blocks(images).flatten(1))
        return nn.functional.leaky_relu(features, 0.01)


def _plain_conv(channels: int, width: int, padding: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(channels, width, 3, padding=padding)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    assert conv.bias is not None
    nn.init.zeros_(conv.bias)
    return [conv, nn.ReLU(inplace=True)]


def _conv(channels: int, width: int, size: int = 3, padding: int = 1) -> list[nn.Module]:
    """Convolution, batch norm, leaky ReLU. No bias: batch norm would take it away."""
    conv = nn.Conv2d(channels, width, size, padding=padding, bias=False)
    nn.init.kaiming_normal_(conv.weight, a=_SLOPE, mode="fan_out", nonlinearity="leaky_relu")
    return [conv, nn.BatchNorm2d(width), nn.LeakyReLU(_SLOPE, inplace=True)]
