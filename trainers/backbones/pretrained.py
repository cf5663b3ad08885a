"""Pretrained vision models through transformers: DINOv2, ViT, ConvNeXt, ResNet, Swin and others.

`hf:<name>` is a model of the Hugging Face hub, `hf:<folder>` a folder with `config.json`,
`model.safetensors` and `preprocessor_config.json`. The only importer of transformers (the extra
`hf`), lazily. Weights come from safetensors alone, and code of a model's repository is never run.

What becomes of an image: the inputs (-1..1, any side) go back to 0..1, grey is repeated to three
channels, the whole image is resized (bicubic, antialiased) to the side that the model's processor
names, and the processor's mean and standard deviation are applied. The features are the model's
own pooled output (ViT: tanh of a linear layer; DINOv2: the class token; ConvNeXt, ResNet, Swin: the
mean over places); where a checkpoint has no weights for its pooler, the class token, or the mean
over places of a model without one.

Departure: processors resize the shorter side and cut out the middle; here nothing is cut off.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .processor import CodeRefusedError, Pixels, read_pixels, refuse_code

PREFIX = "hf:"
Pool = Literal["pooler", "class_token", "mean"]


class Encoder(nn.Module):
    """A model of transformers as a module from images in -1..1 to `b width` features.

    Args:
        model: Takes `pixel_values`.
        pixels: Its processor's numbers; the size is made to fit the model's patches.
        pool: Where the features come from.

    Attributes:
        width: Features per image.

    Raises:
        ValueError: The model is none for images, or its width is not in its configuration.
    """

    def __init__(self, model: Any, pixels: Pixels, pool: Pool) -> None:
        super().__init__()
        config = model.config
        if getattr(model, "main_input_name", "") != "pixel_values":
            raise ValueError(
                f"a {config.model_type!r} model takes {model.main_input_name!r}, not images alone; "
                "choose a vision model such as DINOv2, ViT, ConvNeXt, ResNet or Swin"
            )
        widths = getattr(config, "hidden_sizes", None)
        width = widths[-1] if widths else getattr(config, "hidden_size", None)
        if width is None:
            raise ValueError(f"the width of a {config.model_type!r} model is not in its config")
        self.width: int = width
        self.model, self.pool = model, pool
        self.num_channels: int = getattr(config, "num_channels", 3)
        self.pixels, self._options = _fitted(model, pixels)
        shape = (1, -1, 1, 1)
        self.register_buffer("_mean", torch.tensor(pixels.mean).view(shape), persistent=False)
        self.register_buffer("_std", torch.tensor(pixels.std).view(shape), persistent=False)
        _leave_out_unused(model, pool)

    def forward(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b D"]:
        out = self.model(pixel_values=self.prepare(images), **self._options)
        features: Tensor
        if self.pool == "pooler":
            features = out.pooler_output.flatten(1)
        elif self.pool == "class_token":
            features = out.last_hidden_state[:, 0]
        else:
            last = out.last_hidden_state
            features = last.mean(dim=1) if last.ndim == 3 else last.mean(dim=(2, 3))
        return features

    def prepare(self, images: Float[Tensor, "b c h w"]) -> Float[Tensor, "b C H W"]:
        """Images in -1..1 as the model takes them."""
        x = (images + 1) / 2
        if x.shape[1] == 1 and self.num_channels > 1:
            x = x.expand(-1, self.num_channels, -1, -1)
        if tuple(x.shape[2:]) != self.pixels.size:
            x = nn.functional.interpolate(
                x, self.pixels.size, mode="bicubic", antialias=True, align_corners=False
            ).clamp(0, 1)  # bicubic overshoots; a processor's 8-bit image cannot
        mean, std = self.get_buffer("_mean"), self.get_buffer("_std")
        return (x * self.pixels.scale - mean) / std

    def description(self) -> dict[str, Any]:
        """What `build_pretrained(stored=...)` needs to build this encoder without its source."""
        config = self.model.config.to_dict()
        for key in ("transformers_version", "_name_or_path"):
            config.pop(key, None)
        return {
            "config": config,
            "pool": self.pool,
            "size": list(self.pixels.size),
            "scale": self.pixels.scale,
            "mean": self.get_buffer("_mean").flatten().tolist(),
            "std": self.get_buffer("_std").flatten().tolist(),
        }


class Pretrained(nn.Module):
    """An encoder, and a linear layer where another `feature_dim` is asked for."""

    def __init__(self, encoder: Encoder, feature_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        same = feature_dim == encoder.width
        self.project = nn.Identity() if same else nn.Linear(encoder.width, feature_dim)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.project(self.encoder(images))
        return out


def build_pretrained(
    name: str,
    in_shape: tuple[int, ...],
    feature_dim: int,
    *,
    stored: Mapping[str, Any] | None = None,
) -> Pretrained:
    """The model that `model.backbone` names, with its weights.

    Args:
        name: `hf:` and the hub's name or a local folder.
        in_shape: `(channels, height, width)`.
        stored: A finished run's `Encoder.description()`: the model is built from it, with weights
            that are to be loaded over. Nothing is read or downloaded.

    Returns:
        A module from images in -1..1 to `feature_dim` numbers. Only its projection, where there is
        one, is drawn from the global RNG that the caller has seeded.

    Raises:
        ValueError: transformers is missing, the model cannot be found or read, lacks weights, or
            does not take such inputs.
    """
    source = name.removeprefix(PREFIX)
    if len(in_shape) != 3:
        raise ValueError(
            f"model.backbone = {name!r} is for images, but inputs have the shape {in_shape}; "
            "use 'identity' or 'mlp' for embeddings"
        )
    with torch.random.fork_rng(devices=[]), _quiet(name):
        # what a library draws while it loads must not move the projection
        encoder = _read(name, source) if stored is None else _rebuild(stored)
    if in_shape[0] not in (1, encoder.num_channels):
        raise ValueError(
            f"model.backbone = {name!r} takes images of {encoder.num_channels} channels, not "
            f"{in_shape[0]}; import them as grey or RGB"
        )
    return Pretrained(encoder, feature_dim)


def _read(name: str, source: str) -> Encoder:
    """From a folder or the hub (its local cache first, where there is no connection)."""
    from transformers import AutoModel
    from transformers.utils import cached_file

    try:
        file = cached_file(source, "preprocessor_config.json")
        description = cached_file(source, "config.json")
        if description is not None:  # transformers says it better where there is none
            refuse_code(name, json.loads(Path(description).read_text()))
        model, report = AutoModel.from_pretrained(
            source,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except CodeRefusedError:
        raise
    except (OSError, ValueError) as error:
        raise ValueError(_cannot_be_read(name, source, error)) from error
    missing = sorted(report["missing_keys"])
    others = [key for key in missing if not key.startswith("pooler.")]
    if others or report["mismatched_keys"]:
        wrong = others or [str(key) for key in sorted(report["mismatched_keys"])]
        raise ValueError(
            f"model.backbone = {name!r}: its file has no fitting weights for {wrong[0]!r} (and "
            f"{len(wrong) - 1} more); it is not this model's"
        )
    pool: Pool = "pooler"
    if missing or not _has_pooler(model):
        has_token = any(key.endswith("cls_token") for key in model.state_dict())
        pool = "class_token" if has_token else "mean"
    assert file is not None
    return Encoder(model, read_pixels(name, json.loads(Path(file).read_text())), pool)


def _rebuild(stored: Mapping[str, Any]) -> Encoder:
    from transformers import AutoConfig, AutoModel

    values = dict(stored["config"])
    refuse_code(values.get("model_type", "model"), values)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    model = AutoModel.from_config(config, trust_remote_code=False, dtype=torch.float32)
    height, width = stored["size"]
    pixels = Pixels((height, width), stored["scale"], tuple(stored["mean"]), tuple(stored["std"]))
    return Encoder(model, pixels, stored["pool"])


def _fitted(model: Any, pixels: Pixels) -> tuple[Pixels, dict[str, Any]]:
    """Sides as multiples of the patch, and what `forward` must be told about an unusual size."""
    config, patch = model.config, getattr(model.config, "patch_size", 1)
    steps = (patch, patch) if isinstance(patch, int) else tuple(patch)
    height, width = (max(p, round(side / p) * p) for side, p in zip(pixels.size, steps))
    usual = getattr(config, "image_size", None)
    options: dict[str, Any] = {}
    if "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
        options["interpolate_pos_encoding"] = usual not in (height, (height, width))
    return Pixels((height, width), pixels.scale, pixels.mean, pixels.std), options


def _has_pooler(model: Any) -> bool:
    """Whether a pooled output comes out: always, unless a ViT was made without its layer."""
    return getattr(model, "pooler", True) is not None


def _leave_out_unused(model: nn.Module, pool: Pool) -> None:
    """Weights that no image passes through get no gradient and are no matter for an optimiser."""
    for key, parameter in model.named_parameters():
        if key.endswith("mask_token") or (key.startswith("pooler.") and pool != "pooler"):
            parameter.requires_grad_(False)


def _cannot_be_read(name: str, source: str, error: Exception) -> str:
    if Path(source).is_dir():
        files = ("config.json", "model.safetensors", "preprocessor_config.json")
        lacking = [file for file in files if not (Path(source) / file).exists()]
        why = f"it has no {' and no '.join(lacking)}" if lacking else str(error).splitlines()[0]
        return f"model.backbone = {name!r}: the folder cannot be used: {why}"
    return (
        f"model.backbone = {name!r}: there is no such folder, and no model {source!r} with "
        "safetensors weights and a preprocessor_config.json could be had from the Hugging Face hub "
        "or its local cache; check the name, or download the model on a machine with a connection "
        "and give its folder"
    )


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """transformers imported, without the bars and tables that it prints while it loads.

    Raises:
        ValueError: It is not installed.
    """
    try:
        from transformers.utils import logging
    except ImportError:
        raise ValueError(
            f"model.backbone = {name!r} needs transformers, which is not installed; "
            "pip install 'labelmesh[hf]'"
        ) from None
    level, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if had_bar:
            logging.enable_progress_bar()
