"""Inputs for prediction: a folder of images, one image, or an array in a file."""

from __future__ import annotations

import io
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..datasets.arrays import read_arrays
from ..datasets.decoding import FORMATS, IMAGE_ERRORS, check_pixels
from ..datasets.files import locate
from ..datasets.limits import TooLargeError

_IMAGE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
_GRAY_MODES = frozenset({"1", "L", "LA", "I", "I;16", "F"})


def read_inputs(uri: str) -> tuple[list[str], np.ndarray]:
    """Keys and inputs: uint8 images `n c h w`, or float32 embeddings `n D`.

    Keys are paths below a folder, the file's name for one image, row numbers for an array.

    Raises:
        FileNotFoundError: There is nothing at `uri`.
        ValueError: A file cannot be read, or images differ in shape (both are named).
    """
    filesystem, path = locate(uri)
    if not filesystem.exists(path):
        raise FileNotFoundError(uri)
    ending = PurePosixPath(path).suffix.lower()
    if ending in {".npy", ".npz"}:
        inputs = _array(filesystem.cat_file(path), uri)
        return [str(row) for row in range(len(inputs))], inputs
    if filesystem.isdir(path):
        found = sorted(str(p) for p in filesystem.find(path) if _is_image(str(p)))
        root = path.rstrip("/") + "/"
    else:
        found, root = [path], path.rsplit("/", 1)[0] + "/"
    if not found or not _is_image(found[0]):
        raise ValueError(f"{uri}: no images (.png, .jpg, .webp ...) and no .npy or .npz file")
    keys = [p[len(root) :] if p.startswith(root) else p for p in found]
    return keys, _stacked([_image(filesystem, p) for p in found], keys)


def _is_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in _IMAGE_ENDINGS


def _image(filesystem: Any, path: str) -> np.ndarray:
    try:
        with Image.open(io.BytesIO(filesystem.cat_file(path)), formats=FORMATS) as image:
            check_pixels(image)
            pixels = np.asarray(image.convert("L" if image.mode in _GRAY_MODES else "RGB"))
    except (UnidentifiedImageError, *IMAGE_ERRORS) as error:
        raise ValueError(f"{path}: not a readable image: {error}") from None
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def _stacked(images: list[np.ndarray], keys: list[str]) -> np.ndarray:
    for key, image in zip(keys, images):
        if image.shape != images[0].shape:
            raise ValueError(
                f"images differ in shape (channels, height, width): {keys[0]} is "
                f"{images[0].shape}, {key} is {image.shape}; bring them to one size first"
            )
    return np.stack(images)


def _array(content: bytes, uri: str) -> np.ndarray:
    try:
        loaded: Any = read_arrays(content, uri)
    except TooLargeError:
        raise
    except Exception as error:  # a damaged file can raise anything
        raise ValueError(f"{uri}: not a readable numpy file: {error}") from None
    if not isinstance(loaded, np.ndarray):
        there = list(loaded)
        names = [n for n in ("images", "inputs", "features", "x") if n in there]
        if not names and len(there) != 1:
            raise ValueError(f"{uri}: which of {there} are the inputs? name it 'images'")
        loaded = loaded[names[0] if names else there[0]]
    if loaded.ndim == 2 and loaded.dtype.kind == "f":
        return np.asarray(loaded, np.float32)
    if loaded.ndim == 3:
        loaded = loaded[:, None]
    elif loaded.ndim == 4 and loaded.shape[-1] in (1, 3) and loaded.shape[1] not in (1, 3):
        loaded = loaded.transpose(0, 3, 1, 2)
    if loaded.ndim != 4 or loaded.dtype != np.uint8:
        raise ValueError(
            f"{uri}: an array of shape {loaded.shape} and type {loaded.dtype}; give uint8 images "
            "(n, c, h, w) or float embeddings (n, D)"
        )
    return np.ascontiguousarray(loaded)
