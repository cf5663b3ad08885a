"""CIFAR as lossless WebP sheets of 100 images in Parquet: `*-train.parquet`, `*-test.parquet`.

A row holds `index` (position in the original training set), `label`, `val` (train only) and `webp`,
a square of tiles in row-major order. Training samples keep their original order, so that published
lists of labeled samples apply.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ..decoding import open_image
from ..files import join, list_files, locate
from ..limits import check_parquet
from ..schema import DatasetInfo, SplitName
from ..sources import class_names, name_of, require_source
from ..writer import DatasetWriter


def import_samples(
    source: str | None,
    dest: str,
    *,
    val: str = "train",
    name: str | None = None,
    classes: str | Sequence[str] | None = None,
) -> DatasetInfo:
    """Write a folder of sheets.

    Args:
        val: "published": samples marked `val` become the split of that name; "train": they stay
            training samples, and sample i is the original i.
        classes: Names of the classes, unless the files tell them.

    Raises:
        ValueError: A file is missing or a sheet does not hold as many tiles as labels.
    """
    source = require_source(source, "a folder with *-train.parquet and *-test.parquet")
    if val not in ("train", "published"):
        raise ValueError(f"val = {val!r}: must be 'train' or 'published'")
    writer = DatasetWriter(dest, name=name_of(source, name), kind="image")
    highest = -1
    for split in ("train", "test"):
        uri = _find(source, split)
        fs, path = locate(uri)
        with fs.open(path, "rb") as handle:
            file = pq.ParquetFile(handle)
            check_parquet(file, fs.size(path), None, uri)
            classes = classes or _names_in(file)
            for batch in file.iter_batches(batch_size=4):
                for row in batch.to_pylist():
                    _add_sheet(writer, row, split, val == "published", uri)
                    highest = max(highest, *row["label"])
    return writer.finish(class_names(classes, highest + 1))


def _find(source: str, split: str) -> str:
    found = [f for f in list_files(source) if f.endswith(f"{split}.parquet")]
    if len(found) != 1:
        raise ValueError(f"{source}: expected one file *-{split}.parquet, found {found}")
    return join(source, found[0])


def _names_in(file: pq.ParquetFile) -> list[str] | None:
    metadata = file.schema_arrow.metadata or {}
    names: list[str] | None = json.loads(metadata.get(b"label_names", b"null"))
    return names


def _add_sheet(
    writer: DatasetWriter, row: dict[str, Any], split: SplitName, keep_val: bool, uri: str
) -> None:
    tiles = cut_tiles(row["webp"], len(row["label"]), f"{uri}: sheet {row.get('sheet')}")
    is_val = row.get("val") or [False] * len(tiles)
    for tile, position, label, held_out in zip(tiles, row["index"], row["label"], is_val):
        place: SplitName = "val" if held_out and keep_val else split
        writer.add(place, f"{split}-{position:06d}", tile, truth=label, order=position)


def cut_tiles(webp: bytes, count: int, source: str) -> np.ndarray:
    """The `count` square tiles of a square sheet, uint8 `count c h w`.

    Raises:
        ValueError: It cannot be decoded, or is no square of a square number of tiles.
    """
    try:
        pixels = np.asarray(open_image(webp, ("WEBP", "PNG")).convert("RGB"))
    except ValueError as error:
        raise ValueError(f"{source} {error}") from None
    per_side = int(np.ceil(np.sqrt(count)))
    side = pixels.shape[0] // per_side if per_side else 0
    if not count or pixels.shape[:2] != (side * per_side, side * per_side):
        raise ValueError(f"{source} has {pixels.shape[:2]} pixels, no square of {count} tiles")
    grid = pixels.reshape(per_side, side, per_side, side, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(grid.reshape(-1, 3, side, side)[:count])
