"""Images in folders: one folder per class, plus `unlabeled/` for those whose class nobody knows.

`train/`, `val/` and `test/` above the class folders are optional; without them every image is a
training sample, but for the share that is drawn for testing.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image

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
        max_broken_share: Largest share of files that may be unreadable; they are skipped and named
            in dataset.json.

    Raises:
        ValueError: No class folders, images of different sizes, or too many broken ones.
    """
    source = require_source(source, "a folder with a folder of images per class")
    if channels not in (1, 3):
        raise ValueError(f"channels = {channels}: must be 1 (grey) or 3 (RGB)")
    if size is not None and len(size) != 2:
        raise ValueError(f"size = {size!r}: must be two numbers, height and width")
    files = _images(source)
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
    for split, target, (_, _, path) in zip(splits, truth, files):
        try:
            image = _load(read_bytes(join(source, path)), size, channels)
        except (OSError, SyntaxError, ValueError) as error:
            writer.skip(path, f"cannot be decoded ({str(error).split(' <')[0]})")
            continue
        # WebDataset cuts keys at the first dot of the file name.
        folder, slash, base = path.rpartition("/")
        key = folder + slash + base.replace(".", "_")
        writer.add(split, key, image, truth=None if target == UNLABELED else target)
    return writer.finish(classes)


def _images(source: str) -> list[tuple[SplitName, str, str]]:
    """(split, class folder, path) of every image file, sorted by path."""
    found: list[tuple[SplitName, str, str]] = []
    for path in list_files(source):
        parts = path.split("/")
        split: SplitName = "train"
        for name in SPLIT_NAMES:
            if parts[0] == name:
                split, parts = name, parts[1:]
        if len(parts) > 1 and path.lower().endswith(_ENDINGS):
            found.append((split, parts[0], path))
    return found


def _draw_test(
    splits: list[SplitName], truth: list[int], share: float, seed: int
) -> list[SplitName]:
    free = [i for i, (s, t) in enumerate(zip(splits, truth)) if s == "train" and t != UNLABELED]
    is_test = draw_share(torch.tensor([truth[i] for i in free]), share, seed).tolist()
    drawn = {i for i, test in zip(free, is_test) if test}
    return ["test" if i in drawn else split for i, split in enumerate(splits)]


def _load(content: bytes, size: Sequence[int] | None, channels: int) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as file:
        image = file.convert("L" if channels == 1 else "RGB")
    if size is not None:
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
