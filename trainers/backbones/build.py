"""From `model.backbone` to a network that gives `feature_dim` numbers per input."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from .cnn import Cnn13, FashionCnn, MnistCnn, SmallCnn
from .identity import Identity
from .mlp import Mlp
from .preact import PreActResNet18
from .pretrained import PREFIX, build_pretrained
from .resnet import Pixels, Stem, resnet18, resnet50
from .wide import WideResNet28x2

_RESNETS: dict[str, Callable[..., nn.Module]] = {"resnet18": resnet18, "resnet50": resnet50}
_IMAGE_BACKBONES: dict[str, Callable[..., nn.Module]] = {
    "cnn13": Cnn13,
    "cnn_fashion": FashionCnn,
    "cnn_mnist": MnistCnn,
    "cnn_small": SmallCnn,
    "identity": Identity,
    "preact_resnet18": PreActResNet18,
    "wrn_28_2": WideResNet28x2,
    **_RESNETS,
}
_VECTOR_BACKBONES: dict[str, Callable[..., nn.Module]] = {"identity": Identity, "mlp": Mlp}
_SMALLEST_SIDE = {"cnn_mnist": 16, "identity": 1}
_SMALLEST_OTHERS = 8


def build_backbone(
    name: str,
    in_shape: tuple[int, ...],
    feature_dim: int,
    *,
    stem: Stem = "auto",
    pixels: Pixels = "symmetric",
    stored: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A freshly initialised backbone, drawn from the global RNG that the caller has seeded, or a
    pretrained one (`hf:...`).

    Args:
        in_shape: `(channels, height, width)` of images or `(width,)` of embeddings.
        stem, pixels: Of residual networks (`resnet.py`).
        stored: Of pretrained models (`pretrained.py`).

    Returns:
        A module from `b c h w` (or `b D`) floats to `b feature_dim`.

    Raises:
        ValueError: Unknown name, a backbone of the other kind of input, images too small, or
            `stem` or `pixels` where the backbone has no choice of them.
    """
    options: dict[str, Any] = {"stem": stem, "pixels": pixels}
    for key, plain in (("stem", "auto"), ("pixels", "symmetric")):
        if options[key] != plain and name not in _RESNETS:
            raise ValueError(
                f"model.{key} = {options[key]!r} is a choice of {' and '.join(_RESNETS)} alone; "
                f"leave it out with model.backbone = {name!r}"
            )
    if name.startswith(PREFIX):
        return build_pretrained(name, in_shape, feature_dim, stored=stored)
    known = _IMAGE_BACKBONES if len(in_shape) == 3 else _VECTOR_BACKBONES
    if name not in known:
        kind = "images" if len(in_shape) == 3 else "embeddings"
        raise ValueError(
            f"model.backbone = {name!r} is no backbone for {kind} of shape {tuple(in_shape)}; "
            f"known are {sorted(known)}, and 'hf:<name or folder>' for images"
        )
    least = _SMALLEST_SIDE.get(name, _SMALLEST_OTHERS)
    if len(in_shape) == 3 and min(in_shape[1:]) < least:
        raise ValueError(
            f"images of {in_shape[1]}x{in_shape[2]} pixels are too small for {name!r}; "
            f"the least is {least}x{least}, enlarge them on import"
        )
    return known[name](in_shape, feature_dim, **(options if name in _RESNETS else {}))
