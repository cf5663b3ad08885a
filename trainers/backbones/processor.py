"""What a pretrained model's files say about pixels, and what they must not say."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Pixels:
    """How a model wants its images.

    Attributes:
        size: Height and width.
        scale: A pixel's largest value before mean and standard deviation are applied.
        mean, std: Per channel.
    """

    size: tuple[int, int]
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_pixels(name: str, processor: Mapping[str, Any]) -> Pixels:
    """From a `preprocessor_config.json`.

    Args:
        name: Of the backbone, for the error.

    Raises:
        ValueError: It does not name size, mean and standard deviation.
    """
    given = processor.get("crop_size") if processor.get("do_center_crop", True) else None
    size = _height_and_width(given if given is not None else processor.get("size"))
    mean, std = processor.get("image_mean"), processor.get("image_std")
    if size is None or mean is None or std is None:
        raise ValueError(
            f"model.backbone = {name!r}: its preprocessor_config.json must name size, image_mean "
            "and image_std"
        )
    if not processor.get("do_normalize", True):
        mean, std = [0.0], [1.0]
    factor = processor.get("rescale_factor", 1 / 255) if processor.get("do_rescale", True) else 1.0
    return Pixels(size, 255 * factor, tuple(map(float, mean)), tuple(map(float, std)))


class CodeRefusedError(ValueError):
    """A model's configuration asks for code."""


def refuse_code(name: str, config: Any) -> None:
    """Check a `config.json`, which can name kernels (`attn_implementation = "owner/repository"`)
    that transformers would download and run.

    Raises:
        CodeRefusedError: It does.
    """
    for key, value in config.items() if isinstance(config, Mapping) else ():
        names_code = key.endswith("_implementation") and "/" in json.dumps(value)
        if names_code:
            raise CodeRefusedError(
                f"model.backbone = {name!r}: its config.json has {key} = {value!r}, code that "
                "would be downloaded and run; delete the key"
            )
        refuse_code(name, value)


def _height_and_width(size: Any) -> tuple[int, int] | None:
    if isinstance(size, int):
        return size, size
    if isinstance(size, Mapping) and "height" in size:
        return int(size["height"]), int(size["width"])
    if isinstance(size, Mapping) and "shortest_edge" in size:
        return int(size["shortest_edge"]), int(size["shortest_edge"])
    return None
