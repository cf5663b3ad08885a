"""Inputs for prediction: which files are read, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from labelmesh.cluster.inputs import read_inputs
from PIL import Image


def save_image(path: Path, shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


def test_a_folder_gives_its_images_by_name(tmp_path: Path) -> None:
    second = save_image(tmp_path / "b.png", (5, 4), seed=1)
    first = save_image(tmp_path / "a" / "z.png", (5, 4), seed=2)
    (tmp_path / "readme.txt").write_text("no image")
    keys, inputs = read_inputs(str(tmp_path))
    assert keys == ["a/z.png", "b.png"]
    np.testing.assert_array_equal(inputs, np.stack([first[None], second[None]]))


def test_one_colour_image(tmp_path: Path) -> None:
    pixels = save_image(tmp_path / "dog.png", (6, 5, 3))
    keys, inputs = read_inputs(str(tmp_path / "dog.png"))
    assert keys == ["dog.png"]
    np.testing.assert_array_equal(inputs[0], pixels.transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ((7, 8, 8), (7, 1, 8, 8)),
        ((7, 3, 8, 8), (7, 3, 8, 8)),
        ((7, 8, 8, 3), (7, 3, 8, 8)),
        ((7, 8, 8, 1), (7, 1, 8, 8)),
    ],
)
@pytest.mark.parametrize("ending", ["npy", "npz"])
def test_arrays_of_images(
    tmp_path: Path, ending: str, shape: tuple[int, ...], seen: tuple[int, ...]
) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / f"x.{ending}"
    if ending == "npy":
        np.save(path, images)
    else:
        np.savez(path, images=images, other=np.zeros(3))
    keys, inputs = read_inputs(str(path))
    assert keys == [str(row) for row in range(7)]
    assert inputs.shape == seen
    assert np.sort(inputs, axis=None).tolist() == np.sort(images, axis=None).tolist()


def test_embeddings_become_float32(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(6.0).reshape(3, 2))
    _, inputs = read_inputs(str(tmp_path / "x.npy"))
    assert inputs.dtype == np.float32


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_inputs(str(tmp_path / "missing.png"))


def test_images_of_two_sizes_are_both_named(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png", (5, 4))
    save_image(tmp_path / "b.png", (6, 4))
    with pytest.raises(ValueError, match=r"a.png is \(1, 5, 4\), b.png is \(1, 6, 4\)"):
        read_inputs(str(tmp_path))


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"not a picture")
    (tmp_path / "x.npy").write_bytes(b"not an array")
    (tmp_path / "empty").mkdir()
    np.save(tmp_path / "five.npy", np.zeros((1, 2, 3, 4, 5)))
    np.savez(tmp_path / "two.npz", a=np.zeros(1), b=np.zeros(1))
    for name, sentence in (
        ("a.png", "a.png: not a readable image"),
        ("x.npy", "x.npy: not a readable numpy file"),
        ("empty", "empty: no images"),
        ("five.npy", r"shape \(1, 2, 3, 4, 5\) and type float64"),
        ("two.npz", "which of .*'a', 'b'.* are the inputs"),
    ):
        with pytest.raises(ValueError, match=sentence):
            read_inputs(str(tmp_path / name))
