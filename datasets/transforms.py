"""Weak and strong views, drawn on a whole batch at once.

A view turns inputs as they lie on disk (uint8 images `b c h w`, float32 embeddings `b D`) into
normalised float32. Each sample has parameters of its own. They are drawn here, on the CPU, from
the caller's generator, and applied by functions of torch and kornia that draw nothing: the global
RNG is never touched, and a GPU sees the same views as a CPU.

| name | for | what it does |
| --- | --- | --- |
| plain | both | normalises |
| crop, crop_flip | images | shift by up to 1/8 of the side with reflected borders (and mirror) |
| affine_erase(_flip) | images | turn, shift, scale, shear, brightness, contrast, erase |
| randaugment | images | crop_flip, then two operations of fourteen, then erase |
| crop(_flip)_randaugment1 | images | crop(_flip), then one operation of fourteen |
| noise | embeddings | Gaussian noise |
| noise_drop | embeddings | more noise, and features dropped |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped, UInt8
from torch import Tensor

from .image_operations import affine, crop, erase, jitter, random_operations

IMAGE_VIEWS = (
    "plain",
    "crop",
    "crop_flip",
    "affine_erase",
    "affine_erase_flip",
    "randaugment",
    "crop_randaugment1",
    "crop_flip_randaugment1",
)
VECTOR_VIEWS = ("plain", "noise", "noise_drop")


@dataclass(frozen=True)
class View:
    """One way to look at inputs; `view(inputs, generator)`.

    Attributes:
        name: One of IMAGE_VIEWS or VECTOR_VIEWS.
        shape: `(c, h, w)` or `(D,)`.
        mean, std: Per channel (images, in units of 0..1) or per feature; one number serves all.
    """

    name: str
    shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(
        self, inputs: Shaped[Tensor, "b ..."], generator: torch.Generator
    ) -> Float[Tensor, "b ..."]:
        """Normalised float32 on the inputs' device.

        Raises:
            ValueError: The inputs are not of the view's shape.
        """
        if tuple(inputs.shape[1:]) != self.shape:
            raise ValueError(
                f"view {self.name!r} was made for inputs of shape {self.shape} but got "
                f"{tuple(inputs.shape[1:])}; make one for this shape"
            )
        if inputs.shape[0] == 0:
            return inputs.to(torch.float32)
        if len(self.shape) == 3:
            return self._normalize(_image_view(self.name, inputs, generator))
        return _vector_view(self.name, self._normalize(inputs.to(torch.float32)), generator)

    def _normalize(self, x: Tensor) -> Tensor:
        sides = [1] * (len(self.shape) - 1)
        mean = torch.tensor(self.mean, device=x.device).reshape(-1, *sides)
        std = torch.tensor(self.std, device=x.device).reshape(-1, *sides)
        return (x - mean) / std


def make_view(
    name: str,
    shape: Sequence[int],
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> View:
    """The view `name` for inputs of `shape`.

    Args:
        mean, std: See `View`; without them images go from 0..1 to -1..1 and embeddings stay.

    Raises:
        ValueError: Unknown name, or `mean` or `std` that fit neither one nor all channels.
    """
    known = IMAGE_VIEWS if len(shape) == 3 else VECTOR_VIEWS
    if name not in known:
        kind = "images" if len(shape) == 3 else "embeddings"
        raise ValueError(
            f"{name!r} is no view of {kind} of shape {tuple(shape)}; known are {', '.join(known)}"
        )
    default = (0.5, 0.5) if len(shape) == 3 else (0.0, 1.0)
    mean = (default[0],) if mean is None else mean
    std = (default[1],) if std is None else std
    for key, values in (("mean", mean), ("std", std)):
        if len(values) not in (1, shape[0]):
            raise ValueError(
                f"{key} has {len(values)} numbers but inputs of shape {tuple(shape)} need 1 or "
                f"{shape[0]}"
            )
    if min(std) <= 0:
        raise ValueError(f"std = {tuple(std)}: must be > 0; use 1 for a constant channel")
    return View(name, tuple(shape), tuple(map(float, mean)), tuple(map(float, std)))


def _image_view(
    name: str, images: UInt8[Tensor, "b c h w"], generator: torch.Generator
) -> Float[Tensor, "b c h w"]:
    """Values stay in 0..1."""
    if name not in ("plain", "affine_erase"):
        flip = name not in ("crop", "crop_randaugment1")
        images = crop(images, generator, shift=name != "affine_erase_flip", flip=flip)
    x = images.to(torch.float32) / 255
    if name in ("affine_erase", "affine_erase_flip"):
        x = erase(jitter(affine(x, generator), generator), generator)
    if name == "randaugment":
        x = erase(random_operations(x, generator), generator)
    if name.endswith("randaugment1"):
        x = random_operations(x, generator, count=1)
    return x


def _vector_view(
    name: str, x: Float[Tensor, "b D"], generator: torch.Generator
) -> Float[Tensor, "b D"]:
    if name == "plain":
        return x
    scale = 0.05 if name == "noise" else 0.2
    noise = torch.randn(x.shape, generator=generator).to(x.device)
    # relative to the batch's spread: embeddings come on any scale, and may not be standardised
    x = x + scale * x.std(correction=0) * noise
    if name == "noise_drop":
        keep = torch.rand(x.shape, generator=generator).to(x.device) >= 0.2
        x = x * keep
    return x
