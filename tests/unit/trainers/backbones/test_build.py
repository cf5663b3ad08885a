"""Every backbone gives what was asked for and can be trained."""

import pytest
import torch
from labelmesh.trainers.backbones.build import build_backbone

IMAGES = [
    ("cnn_small", (1, 8, 8)),
    ("cnn_small", (1, 28, 28)),
    ("cnn_small", (3, 32, 32)),
    ("cnn13", (1, 8, 8)),
    ("cnn13", (3, 16, 16)),
    ("resnet18", (3, 16, 16)),
]


@pytest.mark.parametrize(("name", "shape"), IMAGES)
def test_features_have_the_width_and_depend_on_every_parameter(
    name: str, shape: tuple[int, int, int]
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = build_backbone(name, shape, 24)
        x = torch.randn(3, *shape)
    out = net(x)
    assert out.shape == (3, 24)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in net.parameters())


def test_embeddings_go_through_the_mlp() -> None:
    net = build_backbone("mlp", (10,), 6)
    assert net(torch.randn(4, 10, generator=torch.Generator().manual_seed(0))).shape == (4, 6)


def test_initialisation_comes_from_the_seeded_rng() -> None:
    nets = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(7)
            nets.append(build_backbone("cnn_small", (1, 8, 8), 16).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(nets[0].values(), nets[1].values()))


def test_cnn13_has_the_published_convolutions() -> None:
    net = build_backbone("cnn13", (3, 32, 32), 128)
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [c.out_channels for c in convs] == [128] * 3 + [256] * 3 + [512, 256, 128]
    convolutions = 9 * (3 * 128 + 2 * 128**2 + 128 * 256 + 2 * 256**2 + 256 * 512)
    pointwise, norms = 512 * 256 + 256 * 128, 2 * (3 * 128 + 3 * 256 + 512 + 256 + 128)
    assert sum(p.numel() for p in net.parameters()) == convolutions + pointwise + norms


def test_resnet18_has_the_published_size() -> None:
    net = build_backbone("resnet18", (3, 32, 32), 512)
    # torchvision's 11,689,512 less its 1000-way classifier and 7x7 stem, plus a 3x3 stem
    expected = 11_689_512 - 513_000 - 7 * 7 * 3 * 64 + 3 * 3 * 3 * 64
    assert sum(p.numel() for p in net.parameters()) == expected


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("cnn14", (1, 8, 8), "known are"),
        ("mlp", (1, 8, 8), "backbone for images"),
        ("cnn_small", (12,), r"\['mlp'\]"),
        ("cnn13", (1, 4, 4), "too small"),
    ],
)
def test_wrong_requests_are_refused(name: str, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_backbone(name, shape, 16)  # type: ignore[arg-type]
