from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelmesh.datasets.importing import import_dataset
from labelmesh.datasets.manifest import load_labels
from PIL import Image

Data = tuple[np.ndarray, np.ndarray]
Load = Callable[[str, str], Data]


def write_sheets(folder: Path) -> Data:
    """2 x 2 tiles of 3 x 3 pixels per sheet; the train set of 8 comes in swapped order."""
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 3, 3), dtype=np.uint8)
    labels = np.arange(12) % 2
    positions = [4, 5, 6, 7, 0, 1, 2, 3, 0, 1, 2, 3]
    rows: dict[str, list[dict[str, Any]]] = {"train": [], "test": []}
    for first in (0, 4, 8):
        tiles = images[first : first + 4].reshape(2, 2, 3, 3, 3).transpose(0, 3, 1, 4, 2)
        buffer = io.BytesIO()
        Image.fromarray(tiles.reshape(6, 6, 3)).save(buffer, "WEBP", lossless=True)
        row = {
            "sheet": first,
            "index": positions[first : first + 4],
            "label": labels[first : first + 4].tolist(),
            "webp": buffer.getvalue(),
        }
        if first < 8:
            rows["train"].append(row | {"val": [True, False, False, False]})
        else:
            rows["test"].append(row)
    for split, sheets in rows.items():
        table = pa.Table.from_pylist(sheets).replace_schema_metadata({"label_names": '["a", "b"]'})
        pq.write_table(table, folder / f"tiny-{split}.parquet")
    return images, labels


def test_sheets_keep_the_original_order(load: Load, tmp_path: Path) -> None:
    images, labels = write_sheets(tmp_path / "source")
    uri = f"{tmp_path}/out"
    info = import_dataset("sheets", str(tmp_path / "source"), uri)
    assert (info.shape, info.classes, info.counts["train"]) == ((3, 3, 3), ("a", "b"), 8)
    inputs, truth = load(uri, "train")
    np.testing.assert_array_equal(inputs, images[[4, 5, 6, 7, 0, 1, 2, 3]])
    np.testing.assert_array_equal(truth, labels[[4, 5, 6, 7, 0, 1, 2, 3]])
    np.testing.assert_array_equal(load(uri, "test")[0], images[8:])


def test_sheets_published_val_becomes_a_split(load: Load, tmp_path: Path) -> None:
    images, _ = write_sheets(tmp_path / "source")
    uri = f"{tmp_path}/out"
    info = import_dataset("sheets", str(tmp_path / "source"), uri, val="published")
    assert info.counts == {"train": 6, "val": 2, "test": 4}
    np.testing.assert_array_equal(load(uri, "val")[0], images[[4, 0]])
    assert (load_labels(uri)[6:8] >= 0).all()
    with pytest.raises(ValueError, match="must be 'train' or 'published'"):
        import_dataset("sheets", str(tmp_path / "source"), f"{tmp_path}/x", val="some")
