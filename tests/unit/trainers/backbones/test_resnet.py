"""Residual networks against published sizes and key layouts, and against transformers' forward."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from labelmesh.trainers.backbones.build import build_backbone
from labelmesh.trainers.backbones.resnet import resnet18, resnet50
from torch import Tensor, nn

DEPTHS = {"resnet18": (2, 2, 2, 2), "resnet50": (3, 4, 6, 3)}
IMAGENET = (3, 224, 224)


def build(name: str, shape: tuple[int, ...], dim: int, **options: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_backbone(name, shape, dim, **options)  # type: ignore[arg-type]


def norm_keys(name: str) -> list[str]:
    entries = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return [f"{name}.{entry}" for entry in entries]


def torchvision_keys(name: str) -> Iterator[str]:
    """Keys of torchvision's state dict of `name`, in its order, without fc."""
    yield from ["conv1.weight", *norm_keys("bn1")]
    convs = 2 if name == "resnet18" else 3
    for stage, depth in enumerate(DEPTHS[name], start=1):
        for block in range(depth):
            at = f"layer{stage}.{block}"
            for i in range(1, convs + 1):
                yield from [f"{at}.conv{i}.weight", *norm_keys(f"{at}.bn{i}")]
            if block == 0 and (stage > 1 or convs == 3):
                yield from [f"{at}.downsample.0.weight", *norm_keys(f"{at}.downsample.1")]


@pytest.mark.parametrize(
    ("name", "dim", "size"), [("resnet18", 512, 11_176_512), ("resnet50", 2048, 23_508_032)]
)
def test_keys_and_size_are_torchvisions(name: str, dim: int, size: int) -> None:
    with torch.device("meta"):
        net = build_backbone(name, IMAGENET, dim)
    assert list(net.state_dict()) == list(torchvision_keys(name))
    assert sum(p.numel() for p in net.parameters()) == size


def test_strides_lie_in_the_3x3_convolutions() -> None:
    with torch.device("meta"):
        net = build_backbone("resnet50", IMAGENET, 2048)
    strided = [n for n, m in net.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    inner = [n for s in (2, 3, 4) for n in (f"layer{s}.0.conv2", f"layer{s}.0.downsample.0")]
    assert strided == ["conv1", *inner]


@pytest.mark.parametrize(
    ("shape", "stem", "size"),
    [
        ((3, 64, 64), "auto", 3),
        ((3, 65, 64), "auto", 7),
        ((1, 32, 32), "imagenet", 7),
        ((3, 96, 96), "small", 3),
    ],
)
def test_stem_follows_the_image_unless_told(
    shape: tuple[int, int, int], stem: str, size: int
) -> None:
    with torch.device("meta"):
        net = build_backbone("resnet18", shape, 512, stem=stem)  # type: ignore[arg-type]
    assert net.conv1.weight.shape == (64, shape[0], size, size)
    assert isinstance(net.maxpool, nn.MaxPool2d) == (size == 7)


def reference(name: str) -> tuple[nn.Module, dict[str, str]]:
    """transformers' network of the same shape, and where each of our parts is there."""
    transformers = pytest.importorskip("transformers", reason="needs the extra labelmesh[hf]")
    basic = name == "resnet18"
    config = transformers.ResNetConfig(
        embedding_size=64,
        hidden_sizes=[64, 128, 256, 512] if basic else [256, 512, 1024, 2048],
        depths=list(DEPTHS[name]),
        layer_type="basic" if basic else "bottleneck",
    )
    parts = {"conv1": "embedder.embedder.convolution", "bn1": "embedder.embedder.normalization"}
    for stage, depth in enumerate(DEPTHS[name]):
        for block in range(depth):
            ours, theirs = f"layer{stage + 1}.{block}", f"encoder.stages.{stage}.layers.{block}"
            for i in range(2 if basic else 3):
                parts[f"{ours}.conv{i + 1}"] = f"{theirs}.layer.{i}.convolution"
                parts[f"{ours}.bn{i + 1}"] = f"{theirs}.layer.{i}.normalization"
            parts[f"{ours}.downsample.0"] = f"{theirs}.shortcut.convolution"
            parts[f"{ours}.downsample.1"] = f"{theirs}.shortcut.normalization"
    return transformers.ResNetModel(config), parts


@torch.no_grad()
def scramble(net: nn.Module) -> None:
    """Weights that tell apart every tensor: norms that are not the identity."""
    generator = torch.Generator().manual_seed(3)
    for key, value in net.state_dict().items():
        if value.ndim == 1:
            noise = torch.rand(value.shape, generator=generator)
            value.copy_(0.5 + noise if key.endswith(("weight", "running_var")) else noise - 0.5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_forward_is_that_of_transformers(name: str) -> None:
    theirs, parts = reference(name)
    net = build(name, (3, 96, 96), 512 if name == "resnet18" else 2048)
    scramble(net)
    state = {}
    for key, value in net.state_dict().items():
        part, _, entry = key.rpartition(".")
        state[f"{parts[part]}.{entry}"] = value
    theirs.load_state_dict(state)
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = net.eval()(images)
        expected = theirs.eval()(pixel_values=images).pooler_output.flatten(1)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_imagenet_pixels_are_standardised_from_the_same_image() -> None:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    ours, plain = (
        build("resnet18", (3, 16, 16), 8, pixels="imagenet"),
        build("resnet18", (3, 16, 16), 8),
    )
    raw = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    standard = (raw - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        answer, expected = ours.eval()(raw * 2 - 1), plain.eval()(standard)
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)
    assert list(ours.state_dict()) == list(plain.state_dict())


def test_grey_imagenet_pixels_use_the_mean_over_channels() -> None:
    net = build("resnet18", (1, 16, 16), 8, pixels="imagenet")
    raw = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    seen: list[Tensor] = []
    net.conv1.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net.eval()(raw * 2 - 1)
    torch.testing.assert_close(seen[0], (raw - 0.449) / 0.226)


def test_default_widths_are_the_blocks_own() -> None:
    with torch.device("meta"):
        nets = resnet18((3, 8, 8)), resnet50((3, 8, 8))
    assert all(isinstance(net.project, nn.Identity) for net in nets)
