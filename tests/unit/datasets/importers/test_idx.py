from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from labelmesh.datasets.files import join, write_atomic
from labelmesh.datasets.importing import import_dataset

Data = tuple[np.ndarray, np.ndarray]
Load = Callable[[str, str], Data]


def write_idx(folder: str, name: str, values: np.ndarray, end: str = ".gz") -> None:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    content = head + values.tobytes()
    write_atomic(join(folder, name + end), gzip.compress(content) if end else content)


def tiny_idx(folder: str, end: str = ".gz") -> tuple[Data, Data]:
    images = np.random.default_rng(0).integers(0, 256, (13, 4, 5), dtype=np.uint8)
    labels = (np.arange(13) % 3).astype(np.uint8)
    for prefix, part in (("train", slice(0, 9)), ("t10k", slice(9, 13))):
        write_idx(folder, f"{prefix}-images-idx3-ubyte", images[part], end)
        write_idx(folder, f"{prefix}-labels-idx1-ubyte", labels[part], end)
    return (images[:9], labels[:9]), (images[9:], labels[9:])


@pytest.mark.parametrize("source", ["{tmp}/source", "memory://idx-source"])
@pytest.mark.parametrize("end", [".gz", ""])
def test_idx_keeps_pixels_order_and_classes(
    load: Load, tmp_path: Path, source: str, end: str
) -> None:
    source = source.format(tmp=tmp_path) + end.replace(".", "-")
    train, test = tiny_idx(source, end)
    uri = f"{tmp_path}/out"
    info = import_dataset("idx", source, uri, classes="x,y,z")
    assert info.classes == ("x", "y", "z")
    for split, (images, labels) in {"train": train, "test": test}.items():
        inputs, truth = load(uri, split)
        np.testing.assert_array_equal(inputs[:, 0], images)
        np.testing.assert_array_equal(truth, labels)


def test_idx_names_the_file_that_is_wrong(tmp_path: Path) -> None:
    source = str(tmp_path / "source")
    tiny_idx(source)
    out = f"{tmp_path}/out"
    name = "train-labels-idx1-ubyte"
    good = Path(f"{source}/{name}.gz").read_bytes()

    def fails_with(content: bytes, message: str) -> None:
        write_atomic(f"{source}/{name}.gz", content)
        with pytest.raises(ValueError, match=message):
            import_dataset("idx", source, out)

    fails_with(good[:20], f"{name}.gz: broken gzip file")
    fails_with(good[:10] + b"\xff" * 8 + good[18:], f"{name}.gz: broken gzip file")
    fails_with(gzip.compress(gzip.decompress(good)[:-2]), "9 bytes, but has 7; it may be cut off")
    fails_with(b"something else", "not an IDX file of uint8 with 1 dimensions")
    write_idx(source, name, np.zeros(5, np.uint8))
    with pytest.raises(ValueError, match="9 train images, but 5 labels"):
        import_dataset("idx", source, out)
    Path(f"{source}/{name}.gz").unlink()
    with pytest.raises(ValueError, match=f"has none of {name}.gz, {name}"):
        import_dataset("idx", source, out)
