"""Every backbone gives what was asked for and can be trained."""

import pytest
import torch
from labelmesh.trainers.backbones.build import build_backbone
from torch import nn

IMAGES = [
    ("cnn_small", (1, 8, 8)),
    ("cnn_small", (3, 32, 32)),
    ("cnn13", (1, 8, 8)),
    ("cnn13", (3, 16, 16)),
    ("cnn_mnist", (1, 16, 17)),
    ("cnn_fashion", (3, 8, 11)),
    ("resnet18", (3, 8, 8)),
    ("resnet18", (1, 72, 66)),
    ("resnet50", (3, 8, 8)),
    ("preact_resnet18", (3, 8, 8)),
    ("wrn_28_2", (1, 8, 8)),
    ("wrn_28_2", (3, 64, 64)),
]
SMALL = {"cnn_mnist": (3, 16, 16)}


def build(name: str, shape: tuple[int, ...], dim: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build_backbone(name, shape, dim)


def images(shape: tuple[int, ...]) -> torch.Tensor:
    made = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    return made.contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("name", "shape"), IMAGES)
def test_features_have_the_width_and_depend_on_every_parameter(
    name: str, shape: tuple[int, int, int]
) -> None:
    net = build(name, shape, 24)
    out = net(images(shape))
    assert out.shape == (2, 24)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize("name", sorted({name for name, _ in IMAGES}))
def test_a_bf16_step_moves_float32_weights(name: str) -> None:
    shape = SMALL.get(name, (3, 8, 8))
    net, start = build(name, shape, 5), build(name, shape, 5)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(images(shape))
    out.float().square().mean().backward()
    torch.optim.SGD(net.parameters(), lr=0.1).step()
    for moved, before in zip(net.parameters(), start.parameters()):
        assert moved.dtype == torch.float32
        assert moved.isfinite().all()
        assert not torch.equal(moved, before)


def test_embeddings_go_through_the_mlp() -> None:
    net = build_backbone("mlp", (10,), 6)
    assert net(torch.randn(4, 10, generator=torch.Generator().manual_seed(0))).shape == (4, 6)


@pytest.mark.parametrize("name", ["cnn_mnist", "cnn_small", "preact_resnet18", "wrn_28_2"])
def test_initialisation_comes_from_the_seeded_rng(name: str) -> None:
    first, again = (build(name, (3, 16, 16), 16).state_dict() for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_cnn13_has_the_published_convolutions() -> None:
    net = build_backbone("cnn13", (3, 32, 32), 128)
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convs] == [128] * 3 + [256] * 3 + [512, 256, 128]
    convolutions = 9 * (3 * 128 + 2 * 128**2 + 128 * 256 + 2 * 256**2 + 256 * 512)
    pointwise, norms = 512 * 256 + 256 * 128, 2 * (3 * 128 + 3 * 256 + 512 + 256 + 128)
    assert sum(p.numel() for p in net.parameters()) == convolutions + pointwise + norms


@pytest.mark.parametrize(
    ("name", "shape", "dim", "size"),
    [
        # torchvision's 11,689,512 less its 1000-way classifier and 7x7 stem, plus a 3x3 stem
        ("resnet18", (3, 32, 32), 512, 11_689_512 - 513_000 - 7 * 7 * 3 * 64 + 3 * 3 * 3 * 64),
        # 11,171,146 of kuangliu's with 10 classes, less the classifier, plus the last batch norm
        ("preact_resnet18", (3, 32, 32), 512, 11_171_146 - 5_130 + 1_024),
        # 1,467,610 with 10 classes in the PyTorch versions of FixMatch
        ("wrn_28_2", (3, 32, 32), 128, 1_467_610 - 1_290),
        ("cnn_mnist", (1, 28, 28), 200, 320 + 9_248 + 18_496 + 36_928 + 1024 * 200 + 200 + 40_200),
        ("cnn_fashion", (1, 28, 28), 128, 640 + 73_856 + 295_168 + 256 * 7 * 7 * 128 + 128),
    ],
)
def test_size_is_the_published_one(
    name: str, shape: tuple[int, int, int], dim: int, size: int
) -> None:
    with torch.device("meta"):
        net = build_backbone(name, shape, dim)
    assert sum(p.numel() for p in net.parameters()) == size


def test_pre_activation_path_is_the_identity_between_stages() -> None:
    # With the branches' last convolutions at 0 a stage of equal width passes its input through.
    net = build("preact_resnet18", (3, 8, 8), 512)
    for block in net.layer1:
        nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 64, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(net.layer1(x), x)


def test_wide_blocks_start_their_shortcuts_where_fixmatch_does() -> None:
    net = build("wrn_28_2", (3, 8, 8), 128).eval()
    for first, channels, activated in ((net.layer1[0], 16, True), (net.layer2[0], 32, False)):
        nn.init.zeros_(first.conv2.weight)
        x = torch.randn(2, channels, 4, 4, generator=torch.Generator().manual_seed(0))
        source = nn.functional.leaky_relu(first.bn1(x), 0.1) if activated else x
        torch.testing.assert_close(first(x), first.shortcut(source))


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("cnn14", (1, 8, 8), "known are"),
        ("mlp", (1, 8, 8), "backbone for images"),
        ("cnn_small", (12,), r"'mlp'\]"),
        ("cnn13", (1, 4, 4), "too small"),
        ("cnn_mnist", (1, 15, 28), "the least is 16x16"),
    ],
)
def test_wrong_requests_are_refused(name: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_backbone(name, shape, 16)


@pytest.mark.parametrize("options", [{"stem": "imagenet"}, {"pixels": "imagenet"}])
def test_choices_of_residual_networks_are_refused_elsewhere(options: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="a choice of resnet18 and resnet50 alone"):
        build_backbone("cnn13", (3, 32, 32), 16, **options)  # type: ignore[arg-type]
