"""A run's network and views, from its specification alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..datasets.transforms import make_view
from ..graph_store.view import Neighborhood
from .backbones.build import build_backbone
from .backbones.frozen import Frozen, freeze
from .backbones.pretrained import Pretrained
from .backbones.weights import load_weights
from .batches import View, Views
from .config import DataSpec, RunSpec
from .method import Method, Network, ViewName
from .seeds import derive_seed


def make_views(data: DataSpec, shape: tuple[int, ...]) -> Views:
    """The three views that batches are seen through."""
    names: dict[ViewName, str] = {"plain": "plain", "weak": data.weak, "strong": data.strong}
    return {name: _channels_last(make_view(view, shape)) for name, view in names.items()}


def plain_view(shape: tuple[int, ...]) -> View:
    """The view that only normalises."""
    return _channels_last(make_view("plain", shape))


def _channels_last(view: View) -> View:
    """Images as the convolutions like them; their weights may stay as they are (DeepSpeed wants
    them so). On a CPU 1.6 times as fast without gradients, 1.25 times with."""

    def call(inputs: Tensor, generator: torch.Generator) -> Tensor:
        out = view(inputs, generator)
        return out.contiguous(memory_format=torch.channels_last) if out.ndim == 4 else out

    return call


@dataclass(frozen=True)
class Parts:
    """What a run's samples pass through.

    Attributes:
        encoder: Makes features of samples once, ahead of training; None where training sees the
            samples themselves.
        network: What is trained.
        shape: Of the network's inputs.
        about: What a pretrained backbone must be rebuilt from; empty for others.
    """

    encoder: Frozen | None
    network: Network
    shape: tuple[int, ...]
    about: Mapping[str, Any]

    def joined(self, network: Network) -> Network:
        """`network` as one that takes samples."""
        return network if self.encoder is None else EncodedNetwork(self.encoder, network)


class EncodedNetwork(Network):
    """A network behind the frozen encoder that makes its inputs."""

    def __init__(self, encoder: Frozen, network: Network) -> None:
        super().__init__()
        self.feature_dim = network.feature_dim
        self.encoder, self.network = encoder, network

    def features(self, inputs: Tensor) -> Float[Tensor, "b D"]:
        return self.network.features(self.encoder(inputs))

    def head(
        self, features: Float[Tensor, "b D"], neighborhood: Neighborhood | None
    ) -> Float[Tensor, "b C"]:
        return self.network.head(features, neighborhood)


def build_parts(
    spec: RunSpec,
    method: Method,
    shape: tuple[int, ...],
    num_classes: int,
    *,
    stored: Mapping[str, Any] | None = None,
) -> Parts:
    """What a run starts from: a function of its seed and of the weights that `model.backbone` and
    `model.weights` name; leaves the global RNG alone.

    Args:
        shape: Of the samples.
        stored: `Parts.about` of a finished run, where the caller fills in its weights: the files
            that it started from are not asked for.

    Raises:
        ValueError: Parts that do not fit each other, or weights that cannot be read.
    """
    model = spec.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(spec.seed, "init"))
        backbone = build_backbone(
            model.backbone,
            shape,
            model.feature_dim,
            stem=model.stem,
            pixels=model.pixels,
            stored=stored,
        )
        if stored is None and model.weights is not None:
            load_weights(backbone, model.weights)
        about = backbone.encoder.description() if isinstance(backbone, Pretrained) else {}
        encoder = None
        if model.freeze:
            frozen, behind, width = freeze(backbone, model.feature_dim)
            backbone = nn.Sequential(frozen, behind)
            if model.caches:
                encoder, backbone, shape = frozen, behind, (width,)
        _check_trained(spec, method, backbone)
        network = method.build(backbone, model.feature_dim, num_classes)
    return Parts(encoder, network, shape, about)


def build_network(
    spec: RunSpec, method: Method, shape: tuple[int, ...], num_classes: int
) -> Network:
    """`build_parts` as one network that takes samples."""
    parts = build_parts(spec, method, shape, num_classes)
    return parts.joined(parts.network)


def _check_trained(spec: RunSpec, method: Method, backbone: nn.Module) -> None:
    """Whether a method that reads features as they come gets them so."""
    if not method.needs_frozen_backbone:
        return
    trained = [p for p in backbone.parameters() if p.requires_grad]
    if not trained:
        return
    remedy = "set model.freeze = true, or model.backbone = 'identity' for inputs that are features"
    if spec.model.freeze:
        width = next(p.shape[-1] for p in trained if p.ndim == 2)
        remedy = f"set model.feature_dim = {width}, the backbone's own width"
    raise ValueError(
        f"this method reads features as they come, but with model.backbone = "
        f"{spec.model.backbone!r} and model.feature_dim = {spec.model.feature_dim} some "
        f"{sum(p.numel() for p in trained):,} parameters before them would be trained; {remedy}"
    )
