"""From `model.backbone` to a network that gives `feature_dim` numbers per input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from .cnn import Cnn13, SmallCnn
from .mlp import Mlp
from .resnet import ResNet18

_IMAGE_BACKBONES: dict[str, Callable[[Any, int], nn.Module]] = {
    "cnn13": Cnn13,
    "cnn_small": SmallCnn,
    "resnet18": ResNet18,
}
_VECTOR_BACKBONES: dict[str, Callable[[Any, int], nn.Module]] = {"mlp": Mlp}
_SMALLEST_SIDE = 8


def build_backbone(name: str, in_shape: tuple[int, ...], feature_dim: int) -> nn.Module:
    """A freshly initialised backbone, drawn from the global RNG that the caller has seeded.

    Args:
        in_shape: `(channels, height, width)` of images or `(width,)` of embeddings.

    Returns:
        A module from `b c h w` (or `b D`) floats to `b feature_dim`.

    Raises:
        ValueError: Unknown name, a backbone of the other kind of input, or images too small.
    """
    known = _IMAGE_BACKBONES if len(in_shape) == 3 else _VECTOR_BACKBONES
    if name not in known:
        kind = "images" if len(in_shape) == 3 else "embeddings"
        raise ValueError(
            f"model.backbone = {name!r} is no backbone for {kind} of shape {tuple(in_shape)}; "
            f"known are {sorted(known)}"
        )
    if len(in_shape) == 3 and min(in_shape[1:]) < _SMALLEST_SIDE:
        raise ValueError(
            f"images of {in_shape[1]}x{in_shape[2]} pixels are too small for {name!r}; "
            f"the least is {_SMALLEST_SIDE}x{_SMALLEST_SIDE}, enlarge them on import"
        )
    return known[name](in_shape, feature_dim)
