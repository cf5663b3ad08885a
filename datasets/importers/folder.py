"""Images in folders: one folder per class, plus `unlabeled/` for those whose class nobody knows.

`train/`, `val/` and `test/` above the class folders are optional; without them every image is a
training sample, but for the share that is drawn for testing. Images in no class folder are skipped.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

from ..decoding import open_image
from ..files import join, list_files, read_bytes
from ..schema import SPLIT_NAMES, UNLABELED, DatasetInfo, SplitName
from ..sources import name_of, require_source
from ..stratify import draw_share
from ..writer import DatasetWriter

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
_UNLABELED_FOLDER = "unlabeled"


def import_samples(
    source: str | None,
    dest: str,
    *,
    size: Sequence[int] | None = None,
    channels: int = 3,
    test_share: float = 0.0,
    seed: int = 0,
    max_broken_share: float = 0.01,
    name: str | None = None,
) -> DatasetInfo:
    """Write a folder of images.

    Args:
        size: (h, w) that all images are resized to; without it they must be alike.
        channels: 3 (RGB) or 1 (grey).
        test_share: Share of the images with a class that become test samples, where the folder has
            no `test/`.
        max_broken_share: Largest share of files that may be unreadable or lie in no class folder;
            they are skipped and named in dataset.json.

    Raises:
        ValueError: No class folders, images of different sizes, or too many broken ones.
    """
    source = require_source(source, "a folder with a folder of images per class")
    if channels not in (1, 3):
        raise ValueError(f"channels = {channels}: must be 1 (grey) or 3 (RGB)")
    if size is not None and (len(size) != 2 or min(size) < 1):
        raise ValueError(f"size = {size!r}: must be two positive numbers, height and width")
    files, loose = _images(source)
    classes = sorted({folder for _, folder, _ in files} - {_UNLABELED_FOLDER})
    if not classes:
        raise ValueError(f"{source}: has no class folders with images ({', '.join(_ENDINGS)})")
    truth = [UNLABELED if f == _UNLABELED_FOLDER else classes.index(f) for _, f, _ in files]
    splits = [split for split, _, _ in files]
    if test_share and "test" not in splits:
        splits = _draw_test(splits, truth, test_share, seed)
    writer = DatasetWriter(
        dest, name=name_of(source, name), kind="image", max_broken_share=max_broken_share
    )
    for path in loose:
        writer.skip(path, "lies in no class folder")
    for split, target, (_, _, path) in zip(splits, truth, files):
        try:
            file = open_image(read_bytes(join(source, path)))
        except OSError as error:
            writer.skip(path, f"cannot be read ({error})")
            continue
        except ValueError as error:
            writer.skip(path, str(error))
            continue
        # WebDataset cuts keys at the first dot of the file name.
        folder, slash, base = path.rpartition("/")
        key = folder + slash + base.replace(".", "_")
        image = _pixels(file, size, channels)
        writer.add(split, key, image, truth=None if target == UNLABELED else target)
    return writer.finish(classes)


def _images(source: str) -> tuple[list[tuple[SplitName, str, str]], list[str]]:
    """(split, class folder, path) of every image file by path; paths of those in no such folder."""
    found: list[tuple[SplitName, str, str]] = []
    loose: list[str] = []
    for path in list_files(source):
        if not path.lower().endswith(_ENDINGS):
            continue
        folders = path.split("/")[:-1]
        # Once: below a split, a folder of such a name is a class.
        split = next((name for name in SPLIT_NAMES if folders[:1] == [name]), None)
        classes = folders if split is None else folders[1:]
        if classes:
            found.append((split or "train", classes[0], path))
        else:
            loose.append(path)
    return found, loose


def _draw_test(
    splits: list[SplitName], truth: list[int], share: float, seed: int
) -> list[SplitName]:
    free = [i for i, (s, t) in enumerate(zip(splits, truth)) if s == "train" and t != UNLABELED]
    is_test = draw_share(torch.tensor([truth[i] for i in free]), share, seed).tolist()
    drawn = {i for i, test in zip(free, is_test) if test}
    return ["test" if i in drawn else split for i, split in enumerate(splits)]


def _pixels(file: Image.Image, size: Sequence[int] | None, channels: int) -> np.ndarray:
    image = file.convert("L" if channels == 1 else "RGB")
    if size is not None:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
