"""MNIST and its relatives: four IDX files, gzipped or not.

Format: two zero bytes, a type (8 = uint8), the number of dimensions, each dimension as a big-endian
int32, then the values (Yann LeCun, Corinna Cortes: the MNIST database).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ..schema import DatasetInfo, SplitName
from ..sources import class_names, find_one, name_of, read_maybe_gzip, require_source
from ..writer import DatasetWriter

_PREFIXES: dict[SplitName, str] = {"train": "train", "test": "t10k"}
_KNOWN_CLASSES = {
    "fashion_mnist": "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
}


def import_samples(
    source: str | None,
    dest: str,
    *,
    name: str | None = None,
    classes: str | Sequence[str] | None = None,
) -> DatasetInfo:
    """Write the train and test images of a folder (or URI) with the four IDX files.

    Args:
        name: The folder's unless told; "fashion_mnist" brings its class names.
        classes: Names of the classes.

    Raises:
        ValueError: A file is missing, damaged, or images and labels differ in number.
    """
    source = require_source(source, "a folder with train-images-idx3-ubyte.gz and its three kin")
    name = name_of(source, name)
    writer = DatasetWriter(dest, name=name, kind="image")
    highest = -1
    for split, prefix in _PREFIXES.items():
        images = _read(source, prefix, "images", 3)
        labels = _read(source, prefix, "labels", 1)
        if len(images) != len(labels):
            raise ValueError(f"{source}: {len(images)} {split} images, but {len(labels)} labels")
        highest = max(highest, int(labels.max(initial=0)))
        for i, (image, label) in enumerate(zip(images, labels.tolist())):
            writer.add(split, f"{split}-{i:06d}", image[None], truth=label)
    return writer.finish(class_names(classes or _KNOWN_CLASSES.get(name), highest + 1))


def _read(source: str, prefix: str, what: str, num_dims: int) -> np.ndarray:
    stems = [f"{prefix}-{what}-idx{num_dims}-ubyte", f"{prefix}-{what}.idx{num_dims}-ubyte"]
    uri = find_one(source, [stem + end for stem in stems for end in (".gz", "")])
    content = read_maybe_gzip(uri)
    if content[:4] != bytes([0, 0, 8, num_dims]) or len(content) < 4 + 4 * num_dims:
        raise ValueError(f"{uri}: not an IDX file of uint8 with {num_dims} dimensions")
    shape = np.frombuffer(content, ">i4", num_dims, offset=4).tolist()
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * num_dims)
    if len(values) != math.prod(shape) or min(shape) < 0:
        raise ValueError(
            f"{uri}: says {shape}, which is {math.prod(shape)} bytes, but has {len(values)}; "
            "it may be cut off"
        )
    return values.reshape(shape)
