"""Views: what they do to pixels, and where their randomness comes from."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from labelmesh.datasets.image_operations import (
    _OPERATIONS,
    affine,
    crop,
    erase,
    jitter,
    random_operations,
    warp,
)
from labelmesh.datasets.transforms import IMAGE_VIEWS, VECTOR_VIEWS, make_view
from PIL import Image, ImageEnhance, ImageOps

SHAPES = [(1, 28, 28), (3, 32, 32), (1, 8, 8)]


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _images(shape: tuple[int, int, int], b: int = 6) -> torch.Tensor:
    return torch.randint(0, 256, (b, *shape), generator=_rng(5), dtype=torch.uint8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", IMAGE_VIEWS)
def test_image_views_keep_shape_and_range(name: str, shape: tuple[int, int, int]) -> None:
    out = make_view(name, shape)(_images(shape), _rng())
    assert out.dtype == torch.float32
    assert out.shape == (6, *shape)
    assert -1 <= out.min() < out.max() <= 1


@pytest.mark.parametrize("name", IMAGE_VIEWS)
def test_views_are_a_function_of_the_generator_alone(name: str) -> None:
    images = _images((3, 16, 16))
    kept, before = images.clone(), torch.random.get_rng_state()
    view = make_view(name, (3, 16, 16))
    first, second = view(images, _rng(1)), view(images, _rng(1))
    assert torch.equal(first, second)
    assert torch.equal(images, kept)
    assert torch.equal(before, torch.random.get_rng_state())
    if name != "plain":
        assert not torch.equal(first, view(images, _rng(2)))


@pytest.mark.parametrize("name", [n for n in IMAGE_VIEWS if n != "plain"])
def test_each_sample_has_parameters_of_its_own(name: str) -> None:
    same = _images((1, 16, 16), b=1).expand(8, -1, -1, -1)
    out = make_view(name, (1, 16, 16))(same, _rng())
    assert torch.unique(out, dim=0).shape[0] >= 5


def test_plain_normalises_by_channel() -> None:
    images = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    view = make_view("plain", (2, 1, 2), mean=(0.5, 0.2), std=(0.25, 0.1))
    expected = torch.tensor([[[[-2.0, 2.0]], [[0.0, 2.0]]]])
    torch.testing.assert_close(view(images, _rng()), expected)


def test_crop_equals_a_window_of_the_reflected_image() -> None:
    images = _images((2, 16, 16), b=32)
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2), mode="reflect").byte()
    windows = padded.unfold(2, 16, 1).unfold(3, 16, 1)  # b c 5 5 16 16
    out = crop(images, _rng())
    matches = (windows == out[:, :, None, None]).flatten(4).all(4).all(1).flatten(1)
    assert (matches.sum(dim=1) == 1).all()
    assert matches.any(dim=0).sum() > 12


def test_flip_mirrors_about_half_of_the_images() -> None:
    images = _images((1, 8, 8), b=400)
    out = crop(images, _rng(), shift=False, flip=True)
    mirrored = (out == images.flip(3)).flatten(1).all(1)
    kept = (out == images).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert 150 < mirrored.sum() < 250


def test_warp_moves_a_pixel_by_hand() -> None:
    images = torch.zeros(2, 1, 9, 9)
    images[:, 0, 4, 4] = 1
    zeros, pairs = torch.zeros(2), torch.zeros(2, 2)
    shift = torch.tensor([[2 / 9, -3 / 9], [0.0, 0.0]])
    out = warp(images, angle=zeros, shift=shift, scale=torch.ones(2), shear=pairs)
    assert out[0, 0].argmax().item() == (4 - 3) * 9 + (4 + 2)
    torch.testing.assert_close(out[1], images[1], atol=1e-5, rtol=0)


def test_warp_turns_by_a_quarter() -> None:
    images = torch.rand(1, 1, 7, 7, generator=_rng())
    out = warp(
        images,
        angle=torch.tensor([90.0]),
        shift=torch.zeros(1, 2),
        scale=torch.ones(1),
        shear=torch.zeros(1, 2),
    )
    assert min((out - images.rot90(q, (2, 3))).abs().max() for q in (1, 3)) < 1e-4


def test_affine_of_no_strength_is_the_image() -> None:
    images = torch.rand(3, 1, 12, 12, generator=_rng())
    out = affine(images, _rng(), degrees=0.0, share=0.0, scale=0.0, shear=0.0)
    torch.testing.assert_close(out, images, atol=1e-5, rtol=0)


def test_jitter_of_no_strength_is_the_image() -> None:
    images = torch.rand(3, 1, 6, 6, generator=_rng())
    torch.testing.assert_close(jitter(images, _rng(), amount=0.0), images)


def test_erased_pixels_are_one_rectangle_of_the_mean() -> None:
    images = torch.rand(40, 2, 20, 20, generator=_rng())
    out = erase(images, _rng(), largest=0.5)
    changed = (out != images).all(dim=1)
    rows, cols = changed.any(dim=2), changed.any(dim=1)
    assert torch.equal(changed, rows[:, :, None] & cols[:, None, :])
    assert rows.sum(dim=1).max() <= 11
    assert changed.flatten(1).any(dim=1).sum() > 20
    mean = images.mean(dim=(2, 3), keepdim=True).expand_as(images)
    torch.testing.assert_close(out[out != images], mean[out != images])


def test_random_operations_stay_in_range_and_differ() -> None:
    images = torch.rand(64, 3, 16, 16, generator=_rng())
    out = random_operations(images, _rng())
    assert out.min() >= 0
    assert out.max() <= 1
    changed = (out != images).flatten(1).any(dim=1)
    assert 50 < changed.sum() <= 64


PILLOW: dict[int, Callable[[Image.Image], Image.Image]] = {
    1: ImageOps.autocontrast,
    2: ImageOps.equalize,
    3: lambda image: ImageOps.posterize(image, 5),
    4: lambda image: ImageOps.solarize(image, 64),
    5: lambda image: ImageEnhance.Brightness(image).enhance(1 - 0.9 * 0.75),
    7: lambda image: ImageEnhance.Contrast(image).enhance(1 - 0.9 * 0.75),
    8: lambda image: ImageEnhance.Sharpness(image).enhance(1 - 0.9 * 0.75),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("number", PILLOW)
def test_operations_equal_pillows(number: int, channels: int) -> None:
    """Up to rounding, and to the mean that contrast refers to: of channels here, of luma there."""
    images = _images((channels, 28, 28), b=4)
    images[:, :, :12] //= 6
    expected = []
    for image in images.permute(0, 2, 3, 1).numpy():
        done = np.array(PILLOW[number](Image.fromarray(image.squeeze())))
        expected.append(torch.from_numpy(done).reshape(28, 28, channels).permute(2, 0, 1))
    out = _OPERATIONS[number](images / 255, torch.full((4,), 0.75), torch.full((4,), -1.0))
    atol = 2 / 255 if number != 7 else 3 / 255
    torch.testing.assert_close(out.clamp(0, 1), torch.stack(expected) / 255, atol=atol, rtol=0)


@pytest.mark.parametrize("number", range(len(_OPERATIONS)))
def test_operations_act_on_grey_as_on_three_equal_channels(number: int) -> None:
    grey = (_images((1, 28, 28), b=5) // 3) / 255
    strength, sign = torch.rand(5, generator=_rng(1)), torch.tensor([1.0, -1, 1, -1, 1])
    out = _OPERATIONS[number](grey, strength, sign)
    colour = _OPERATIONS[number](grey.expand(-1, 3, -1, -1).clone(), strength, sign)
    torch.testing.assert_close(out.expand(-1, 3, -1, -1), colour, atol=1e-5, rtol=0)
    changes = (out - grey).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert not changes.any() if number in (0, 6) else changes.any()


@pytest.mark.parametrize("name", ["crop_randaugment1", "crop_flip_randaugment1"])
@pytest.mark.parametrize("channels", [1, 3])
def test_one_operation_on_top_of_the_crop(name: str, channels: int) -> None:
    """The crop draws first; a sample then goes through exactly one of the fourteen."""
    images = _images((channels, 16, 16), b=64)
    out = make_view(name, (channels, 16, 16))(images, _rng())
    rng = _rng()
    base = make_view(name.removesuffix("_randaugment1"), (channels, 16, 16))(images, rng)
    chosen = torch.randint(len(_OPERATIONS), (64,), generator=rng)
    strength = torch.rand(64, generator=rng)
    sign = torch.randint(2, (64,), generator=rng) * 2.0 - 1
    x = ((base + 1) / 2 * 255).round() / 255
    each = zip(chosen.tolist(), x.split(1), strength.split(1), sign.split(1))
    expected = torch.cat([_OPERATIONS[n](x, s, g).clamp(0, 1) for n, x, s, g in each])
    torch.testing.assert_close(out, expected * 2 - 1, atol=1e-4, rtol=0)
    kept = (out == base).flatten(1).all(dim=1)
    assert kept[chosen == 0].all()
    assert chosen.unique().numel() == len(_OPERATIONS)


NEXT_DRAW = {
    "plain": 0.5349225401878357,
    "crop": 0.28683900833129883,
    "crop_flip": 0.9699196219444275,
    "affine_erase": 0.7737615704536438,
    "affine_erase_flip": 0.1469746232032776,
    "randaugment": 0.6685574650764465,
}


@pytest.mark.parametrize("name", NEXT_DRAW)
def test_random_streams_of_views_are_as_they_were(name: str) -> None:
    """Runs can only be repeated while a view draws what it always has."""
    rng = _rng(7)
    make_view(name, (3, 32, 32))(_images((3, 32, 32)), rng)
    assert torch.rand((), generator=rng).item() == NEXT_DRAW[name]


@pytest.mark.parametrize("name", VECTOR_VIEWS)
def test_embedding_views_standardise_first(name: str) -> None:
    x = 3 + 2 * torch.randn(500, 20, generator=_rng(), dtype=torch.float32)
    view = make_view(name, (20,), mean=(3.0,), std=(2.0,))
    out = view(x, _rng(1))
    clean = (x - 3) / 2
    noise = {"plain": 0.0, "noise": 0.05, "noise_drop": 0.2}[name]
    kept = out != 0
    assert (out - clean)[kept].std().item() == pytest.approx(noise, abs=0.01)
    assert kept.float().mean().item() == pytest.approx(0.8 if "drop" in name else 1, abs=0.02)


@pytest.mark.parametrize("shape", [(1, 8, 8), (5,)])
def test_no_inputs_give_no_views(shape: tuple[int, ...]) -> None:
    inputs = torch.zeros(0, *shape, dtype=torch.uint8 if len(shape) == 3 else torch.float32)
    name = "affine_erase" if len(shape) == 3 else "noise"
    assert make_view(name, shape)(inputs, _rng()).shape == (0, *shape)


@pytest.mark.parametrize(
    ("name", "shape", "kwargs", "words"),
    [
        ("crops", (1, 8, 8), {}, "known are plain, crop"),
        ("crop", (16,), {}, "known are plain, noise"),
        ("plain", (3, 8, 8), {"mean": (0.5, 0.5)}, "need 1 or 3"),
        ("plain", (1, 8, 8), {"std": (0.0,)}, "must be > 0"),
    ],
)
def test_wrong_requests_are_refused(
    name: str, shape: tuple[int, ...], kwargs: dict[str, tuple[float, ...]], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        make_view(name, shape, **kwargs)  # type: ignore[arg-type]


def test_inputs_of_another_shape_are_refused() -> None:
    with pytest.raises(ValueError, match=r"made for inputs of shape \(1, 8, 8\)"):
        make_view("plain", (1, 8, 8))(_images((1, 16, 16)), _rng())
