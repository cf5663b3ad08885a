"""Wide residual networks (Zagoruyko and Komodakis, BMVC 2016), as FixMatch trains them."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import leaky_relu

from .resnet import conv

_SLOPE = 0.1
_EPS = 1e-3


class WideResNet28x2(nn.Module):
    """WRN-28-2: a 3x3 stem of 16, three stages of four blocks of 32, 64, 128; 128 features.

    The variant of FixMatch (Sohn et al., NeurIPS 2020): leaky ReLU 0.1, no dropout, batch norm
    with eps 0.001; in the first stage alone the shortcut starts behind the first activation.

    Departures: convolutions without bias (a batch norm follows every path); batch norm's running
    statistics move by 0.1 a step, not by 0.001, because the averaged network averages them too.
    """

    def __init__(self, in_shape: tuple[int, int, int], feature_dim: int = 128) -> None:
        super().__init__()
        self.conv1 = conv(in_shape[0], 16, 3, 1)
        self.layer1 = _stage(16, 32, 1, activate_shortcut=True)
        self.layer2 = _stage(32, 64, 2)
        self.layer3 = _stage(64, 128, 2)
        self.bn = nn.BatchNorm2d(128, eps=_EPS)
        self.project = nn.Identity() if feature_dim == 128 else nn.Linear(128, feature_dim)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b D"]:
        x = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        out: Tensor = self.project(leaky_relu(self.bn(x), _SLOPE).mean(dim=(2, 3)))
        return out


class WideBlock(nn.Module):
    """Batch norm, leaky ReLU, 3x3; the same again; a 1x1 shortcut where the width changes."""

    def __init__(
        self, channels: int, width: int, stride: int, *, activate_shortcut: bool = False
    ) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels, eps=_EPS)
        self.conv1 = conv(channels, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width, eps=_EPS)
        self.conv2 = conv(width, width, 3, 1)
        self.shortcut = conv(channels, width, 1, stride) if channels != width else nn.Identity()
        self._activate_shortcut = activate_shortcut

    def forward(self, x: Tensor) -> Tensor:
        active = leaky_relu(self.bn1(x), _SLOPE)
        out: Tensor = self.conv2(leaky_relu(self.bn2(self.conv1(active)), _SLOPE))
        shortcut: Tensor = self.shortcut(active if self._activate_shortcut else x)
        return out + shortcut


def _stage(
    channels: int, width: int, stride: int, *, activate_shortcut: bool = False
) -> nn.Sequential:
    first = WideBlock(channels, width, stride, activate_shortcut=activate_shortcut)
    return nn.Sequential(first, *(WideBlock(width, width, 1) for _ in range(3)))
