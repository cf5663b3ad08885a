"""The operations that `transforms.py` composes: one draw of parameters, one batched application.

Images are floats in 0..1, `b c h w`, unless said otherwise; every operation returns the same.
Parameters are drawn per sample on the CPU and moved to the images' device.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import kornia
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

Images = Float[Tensor, "b c h w"]


def crop(
    images: Shaped[Tensor, "b c h w"],
    generator: torch.Generator,
    *,
    shift: bool = True,
    flip: bool = False,
) -> Shaped[Tensor, "b c h w"]:
    """Shift each image by up to 1/8 of its side, reflecting its borders; mirror half of them.

    Equal to a crop from an image padded by reflection, as one gather of any dtype.
    """
    b, _, height, width = images.shape
    rows = _shifted(b, height, generator, shift)
    cols = _shifted(b, width, generator, shift)
    if flip:
        mirrored = torch.rand(b, generator=generator) < 0.5
        cols = torch.where(mirrored[:, None], cols.flip(1), cols)
    # one flat gather; indexing with four broadcast index tensors is several times slower
    pixel = (rows[:, :, None] * width + cols[:, None, :]).reshape(b, 1, height * width)
    pixel = pixel.to(images.device).expand(-1, images.shape[1], -1)
    return images.flatten(2).gather(2, pixel).reshape(images.shape)


def affine(
    images: Images,
    generator: torch.Generator,
    *,
    degrees: float = 20.0,
    share: float = 0.12,
    scale: float = 0.15,
    shear: float = 0.2,
) -> Images:
    """Turn, shift (by a share of the side), scale and shear about the centre."""
    b = images.shape[0]
    return warp(
        images,
        angle=_uniform(b, -degrees, degrees, generator),
        shift=torch.stack([_uniform(b, -share, share, generator) for _ in range(2)], dim=1),
        scale=_uniform(b, 1 - scale, 1 + scale, generator),
        shear=torch.stack([_uniform(b, -shear, shear, generator) for _ in range(2)], dim=1),
    )


def warp(
    images: Images,
    *,
    angle: Float[Tensor, " b"],
    shift: Float[Tensor, "b 2"],
    scale: Float[Tensor, " b"],
    shear: Float[Tensor, "b 2"],
) -> Images:
    """Given affine maps; pixels from outside repeat the border.

    Args:
        angle: Degrees.
        shift: x and y as a share of the side.
        shear: Radians, along x and y.
    """
    b, _, height, width = images.shape
    device = images.device
    sides = torch.tensor([width, height], dtype=torch.float32)
    center = ((sides - 1) / 2).expand(b, 2)
    matrix = kornia.geometry.transform.get_affine_matrix2d(
        shift * sides, center, scale[:, None].expand(b, 2), angle, shear[:, 0], shear[:, 1]
    )
    out: Tensor = kornia.geometry.transform.warp_affine(
        images, matrix[:, :2].to(device), (height, width), padding_mode="border"
    )
    return out


def jitter(images: Images, generator: torch.Generator, *, amount: float = 0.3) -> Images:
    """Brightness added and contrast multiplied, each by up to `amount`, within 0..1."""
    b = images.shape[0]
    shape, device = (b, 1, 1, 1), images.device
    contrast = _uniform(b, 1 - amount, 1 + amount, generator).to(device).view(shape)
    brightness = _uniform(b, -amount, amount, generator).to(device).view(shape)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return ((images - mean) * contrast + mean + brightness).clamp(0, 1)


def erase(images: Images, generator: torch.Generator, *, largest: float = 0.4) -> Images:
    """One rectangle per image, sides up to `largest` of the image's, filled with its mean.

    The mean, not black: where the background is black, black rectangles hide nothing but strokes.
    """
    b, _, height, width = images.shape
    inside = _span(b, height, largest, generator)[:, :, None] & _span(
        b, width, largest, generator
    ).unsqueeze(1)
    fill = images.mean(dim=(2, 3), keepdim=True)
    return torch.where(inside[:, None].to(images.device), fill, images)


def random_operations(images: Images, generator: torch.Generator, *, count: int = 2) -> Images:
    """`count` operations per image, drawn from fourteen, each with its own strength.

    Cubuk et al., "RandAugment", NeurIPS workshops 2020, table of operations; strengths are
    uniform up to the largest (as in FixMatch). Loops over operations, not over images. Saturation
    leaves grey images as they are, equalisation those of fewer than 256 pixels (as Pillow does).
    """
    b = images.shape[0]
    out = images.clone()
    for _ in range(count):
        chosen = torch.randint(len(_OPERATIONS), (b,), generator=generator)
        strength = torch.rand(b, generator=generator)
        sign = torch.randint(2, (b,), generator=generator) * 2.0 - 1
        for number, operation in enumerate(_OPERATIONS):
            rows = (chosen == number).nonzero()[:, 0]
            if rows.numel():
                at = rows.to(images.device)
                out[at] = operation(out[at], strength[rows], sign[rows]).clamp(0, 1)
    return out


def _uniform(b: int, low: float, high: float, generator: torch.Generator) -> Float[Tensor, " b"]:
    return low + (high - low) * torch.rand(b, generator=generator)


def _shifted(b: int, side: int, generator: torch.Generator, shift: bool) -> Tensor:
    """Pixel numbers `b side`, shifted per sample and reflected at the borders."""
    most = max(1, side // 8) if shift else 0
    offset = torch.randint(-most, most + 1, (b, 1), generator=generator)
    at = (torch.arange(side) + offset).abs()
    return (side - 1) - (side - 1 - at).abs()


def _span(b: int, side: int, largest: float, generator: torch.Generator) -> Tensor:
    """True within a random interval of 0 to `largest` of the side: `b side`."""
    length = _uniform(b, 0.0, largest * side, generator)[:, None]
    start = torch.rand(b, 1, generator=generator) * (side - length)
    at = torch.arange(side) + 0.5
    return (at >= start) & (at < start + length)


def _factor(strength: Tensor, sign: Tensor) -> Tensor:
    """0.1 to 1.9, 1 for strength 0."""
    return 1 + 0.9 * strength * sign


def _geometric(
    x: Tensor,
    *,
    angle: Tensor | None = None,
    shift: Tensor | None = None,
    shear: Tensor | None = None,
) -> Tensor:
    b = x.shape[0]
    zeros = torch.zeros(b)
    pairs = torch.zeros(b, 2)
    return warp(
        x,
        angle=zeros if angle is None else angle,
        shift=pairs if shift is None else shift,
        scale=torch.ones(b),
        shear=pairs if shear is None else shear,
    )


def _along(axis: int, amount: Tensor) -> Tensor:
    pair = torch.zeros(amount.shape[0], 2)
    pair[:, axis] = amount
    return pair


def _autocontrast(x: Tensor) -> Tensor:
    low = x.amin(dim=(2, 3), keepdim=True)
    spread = x.amax(dim=(2, 3), keepdim=True) - low
    return torch.where(spread > 0, (x - low) / spread.clamp(min=1e-6), x)


def _saturation(x: Tensor, factor: Tensor) -> Tensor:
    grey = x.mean(dim=1, keepdim=True)
    return torch.lerp(grey, x, factor.to(x).view(-1, 1, 1, 1))


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    grey = x.mean(dim=(1, 2, 3), keepdim=True)
    return torch.lerp(grey, x, factor.to(x).view(-1, 1, 1, 1))


def _posterize(x: Tensor, strength: Tensor) -> Tensor:
    bits = (8 - (strength * 4).round()).to(torch.int32)
    out: Tensor = kornia.enhance.posterize(x, bits.to(x.device))
    return out


def _solarize(x: Tensor, strength: Tensor) -> Tensor:
    return torch.where(x >= 1 - strength.to(x).view(-1, 1, 1, 1), 1 - x, x)


def _sharpness(x: Tensor, factor: Tensor) -> Tensor:
    out: Tensor = kornia.enhance.sharpness(x, factor.to(x.device))
    return out


def _equalize(x: Tensor) -> Tensor:
    out: Tensor = kornia.enhance.equalize(x)
    return out


_SHIFT, _SHEAR, _DEGREES = 0.3, math.atan(0.3), 30.0

_OPERATIONS: tuple[Callable[[Tensor, Tensor, Tensor], Tensor], ...] = (
    lambda x, strength, sign: x,
    lambda x, strength, sign: _autocontrast(x),
    lambda x, strength, sign: _equalize(x),
    lambda x, strength, sign: _posterize(x, strength),
    lambda x, strength, sign: _solarize(x, strength),
    lambda x, strength, sign: x * _factor(strength, sign).to(x).view(-1, 1, 1, 1),
    lambda x, strength, sign: _saturation(x, _factor(strength, sign)),
    lambda x, strength, sign: _contrast(x, _factor(strength, sign)),
    lambda x, strength, sign: _sharpness(x, _factor(strength, sign)),
    lambda x, strength, sign: _geometric(x, angle=_DEGREES * strength * sign),
    lambda x, strength, sign: _geometric(x, shift=_along(0, _SHIFT * strength * sign)),
    lambda x, strength, sign: _geometric(x, shift=_along(1, _SHIFT * strength * sign)),
    lambda x, strength, sign: _geometric(x, shear=_along(0, _SHEAR * strength * sign)),
    lambda x, strength, sign: _geometric(x, shear=_along(1, _SHEAR * strength * sign)),
)
