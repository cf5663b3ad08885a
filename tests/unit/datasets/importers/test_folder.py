from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from labelmesh.datasets.decoding import IMAGE_ERRORS
from labelmesh.datasets.importing import import_dataset
from labelmesh.datasets.manifest import load_index, load_info, load_labels
from PIL import Image

Load = Callable[[str, str], tuple[np.ndarray, np.ndarray]]


def write_folder(folder: Path, *, prefix: str = "") -> dict[str, np.ndarray]:
    images = np.random.default_rng(0).integers(0, 256, (9, 6, 5, 3), dtype=np.uint8)
    names = [f"{c}/{i}.{e}" for c in ("cat", "dog") for i, e in enumerate(["png", "bmp", "a.png"])]
    names += [f"unlabeled/{i}.png" for i in range(3)]
    for name, image in zip(names, images):
        path = folder / prefix / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "notes.txt").write_text("no image")
    return {prefix + name.replace(".", "_"): image for name, image in zip(names, images)}


def test_folder_names_classes_and_leaves_the_unlabeled_unknown(load: Load, tmp_path: Path) -> None:
    images = write_folder(tmp_path / "pets")
    uri = f"{tmp_path}/out"
    info = import_dataset("folder", f"{tmp_path}/pets", uri)
    assert (info.name, info.classes, info.counts["train"]) == ("pets", ("cat", "dog"), 9)
    keys = [key.as_py() for key in load_index(uri).keys]
    assert sorted(keys) == sorted(images)
    inputs, truth = load(uri, "train")
    np.testing.assert_array_equal(inputs.transpose(0, 2, 3, 1), [images[key] for key in keys])
    expected = [{"cat": 0, "dog": 1, "unlabeled": -1}[key.split("/")[0]] for key in keys]
    assert truth.tolist() == load_labels(uri).tolist() == expected
    assert pq.read_table(f"{uri}/manifest.parquet")["truth"].null_count == 3


def test_folder_with_splits_sizes_and_channels(load: Load, tmp_path: Path) -> None:
    for prefix in ("train/", "test/"):
        write_folder(tmp_path / "pets", prefix=prefix)
    info = import_dataset("folder", f"{tmp_path}/pets", f"{tmp_path}/out", size=[8, 4], channels=1)
    assert info.counts == {"train": 9, "val": 0, "test": 9}
    assert load(f"{tmp_path}/out", "test")[0].shape == (9, 1, 8, 4)


def test_folder_test_share_is_drawn_from_known_classes(load: Load, tmp_path: Path) -> None:
    write_folder(tmp_path / "pets")
    import_dataset("folder", f"{tmp_path}/pets", f"{tmp_path}/out", test_share=0.34)
    assert sorted(load(f"{tmp_path}/out", "test")[1]) == [0, 1]


def test_broken_image_file_is_reported_up_to_a_share(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets")
    (tmp_path / "pets/cat/bad.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"1 of 10 samples cannot be read.*cat/bad\.png: cannot"):
        import_dataset("folder", f"{tmp_path}/pets", f"{tmp_path}/out")
    import_dataset("folder", f"{tmp_path}/pets", f"{tmp_path}/out", max_broken_share=0.1)
    assert list(load_info(f"{tmp_path}/out").skipped) == ["cat/bad.png"]


def test_images_of_different_sizes_need_a_size(tmp_path: Path) -> None:
    write_folder(tmp_path / "pets")
    Image.new("RGB", (7, 7)).save(tmp_path / "pets/dog/big.png")
    with pytest.raises(ValueError, match=r"'dog/big_png' has shape \(3, 7, 7\)"):
        import_dataset("folder", f"{tmp_path}/pets", f"{tmp_path}/out")
    import_dataset("folder", f"{tmp_path}/pets", f"{tmp_path}/out", size=(6, 5))


def test_folder_takes_one_split_and_names_loose_images(tmp_path: Path) -> None:
    names = ["train/test/1.png", "train/val/cat/2.png", "val/cat/3.png", "4.png", "test/5.png"]
    for name in names:
        (tmp_path / "pets" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(tmp_path / "pets" / name)
    uri = f"{tmp_path}/out"
    info = import_dataset("folder", f"{tmp_path}/pets", uri, max_broken_share=0.4)
    assert info.classes == ("cat", "test", "val")
    assert info.counts == {"train": 2, "val": 1, "test": 0}
    assert load_labels(uri).tolist() == [1, 2, 0]
    assert info.skipped == dict.fromkeys(["4.png", "test/5.png"], "lies in no class folder")
    with pytest.raises(ValueError, match=r"2 of 5 .*4\.png: lies in no class folder"):
        import_dataset("folder", f"{tmp_path}/pets", f"{tmp_path}/x")


@pytest.mark.parametrize(
    ("name", "pixels", "reason"),
    [
        ("deep.png", np.full((6, 5), 40_000, np.uint16), "has 16-bit mode I;16; convert"),
        ("deep.tif", np.full((6, 5), 40_000, np.int32), "has 32-bit mode I; convert"),
        ("real.tif", np.full((6, 5), 0.5, np.float32), "has 32-bit mode F; convert"),
    ],
)
def test_more_than_8_bits_are_not_clipped(
    tmp_path: Path, name: str, pixels: np.ndarray, reason: str
) -> None:
    write_folder(tmp_path / "pets")
    Image.fromarray(pixels).save(tmp_path / "pets/cat" / name)
    info = import_dataset(
        "folder", f"{tmp_path}/pets", f"{tmp_path}/out", channels=1, max_broken_share=0.1
    )
    assert info.skipped == {f"cat/{name}": f"{reason} to 8 bits"}


@pytest.mark.parametrize("error", IMAGE_ERRORS)
def test_whatever_a_damaged_image_raises_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    write_folder(tmp_path / "pets")
    (tmp_path / "pets/cat/bad.png").write_bytes(b"damaged")
    whole = Image.open

    def fail_on_damage(file: io.BytesIO, **options: Any) -> Image.Image:
        if file.getvalue() == b"damaged":
            raise error("it broke")
        return whole(file, **options)

    monkeypatch.setattr(Image, "open", fail_on_damage)
    info = import_dataset("folder", f"{tmp_path}/pets", f"{tmp_path}/out", max_broken_share=0.1)
    assert info.skipped == {"cat/bad.png": "cannot be decoded (it broke)"}


def test_image_of_too_many_pixels_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "pets")
    Image.new("RGB", (50, 50)).save(tmp_path / "pets/dog/bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    info = import_dataset("folder", f"{tmp_path}/pets", f"{tmp_path}/out", max_broken_share=0.1)
    assert "exceeds limit" in info.skipped["dog/bomb.png"]
