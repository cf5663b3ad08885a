from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from labelmesh.datasets.files import list_files
from labelmesh.datasets.importing import import_dataset, importer_names
from labelmesh.datasets.manifest import load_index, load_labels, splits_of
from labelmesh.datasets.reader import Reader
from labelmesh.datasets.splits import make_split, published_split

Load = Callable[[str, str], tuple[np.ndarray, np.ndarray]]


def test_digits_are_scikit_learns(load: Load, tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    uri = f"{tmp_path}/digits"
    info = import_dataset("digits", None, uri)
    assert (info.shape, info.num_classes) == ((1, 8, 8), 10)
    assert info.counts == {"train": 1438, "val": 0, "test": 359}
    digits = load_digits()
    index = load_index(uri)
    number = np.array([int(key.as_py().removeprefix("digit-")) for key in index.keys])
    inputs, truth = (np.concatenate(x) for x in zip(load(uri, "train"), load(uri, "test")))
    np.testing.assert_array_equal(inputs[:, 0], np.round(digits.images * 255 / 16)[number])
    np.testing.assert_array_equal(truth, digits.target[number])
    shares = np.bincount(load(uri, "test")[1]) / np.bincount(digits.target)
    assert np.abs(shares - 0.2).max() < 0.012  # two images of about 178
    labels = load_labels(uri).numpy()
    np.testing.assert_array_equal(labels, np.r_[truth[:1438], np.full(359, -1)])


def test_importers_are_found_on_disk() -> None:
    assert set(importer_names()) >= {"cifar", "digits", "embeddings", "folder", "idx", "sheets"}


def test_import_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    out = f"{tmp_path}/out"
    with pytest.raises(ValueError, match=r"format 'nope': must be one of .*digits"):
        import_dataset("nope", None, out)
    with pytest.raises(ValueError, match="digits has no option 'sizes'; options are test_share"):
        import_dataset("digits", None, out, sizes=3)
    for name in set(importer_names()) - {"digits"}:
        with pytest.raises(ValueError, match="needs a source"):
            import_dataset(name, None, out)
        with pytest.raises(ValueError, match="does not exist"):
            import_dataset(name, f"{tmp_path}/none", out)
    Path(out).mkdir()
    Path(out, "file").touch()
    with pytest.raises(ValueError, match="is not empty"):
        import_dataset("digits", None, out)
    assert list_files(out) == ["file"]


def real(name: str) -> str:
    root = os.environ.get("LABELMESH_DATA")
    if not root:
        pytest.skip("set LABELMESH_DATA to the folder of data sets")
    return f"{root}/{name}"


@pytest.mark.data
@pytest.mark.slow
def test_fashion_mnist_is_imported_whole(load: Load, tmp_path: Path) -> None:
    uri = f"{tmp_path}/out"
    info = import_dataset("idx", real("fashion_mnist"), uri)
    assert info.counts == {"train": 60_000, "val": 0, "test": 10_000}
    assert info.classes[9] == "Ankle boot"
    with gzip.open(real("fashion_mnist") + "/t10k-images-idx3-ubyte.gz") as file:
        pixels = np.frombuffer(file.read()[16:], np.uint8).reshape(-1, 28, 28)
    inputs, truth = load(uri, "test")
    np.testing.assert_array_equal(inputs[:, 0], pixels)
    assert np.bincount(truth).tolist() == [1000] * 10


@pytest.mark.data
@pytest.mark.slow
def test_cifar10_sheets_agree_with_the_published_splits(tmp_path: Path) -> None:
    uri = f"{tmp_path}/out"
    info = import_dataset("sheets", real("cifar10"), uri)
    assert info.counts == {"train": 50_000, "val": 0, "test": 10_000}
    rows = splits_of(uri)
    published = published_split(real("ssl_splits/ssl_label_splits.parquet"), "cifar10", 1000, 3)
    split = make_split(
        load_labels(uri),
        rows["train"],
        rows["test"],
        rows["val"],
        labels_per_class=None,
        split_seed=0,
        val_share=0.0,
        num_nodes=None,
        num_classes=10,
        published=published,
    )
    assert split.labels[split.labels >= 0].bincount().tolist() == [100] * 10
    # The mean of the training pixels that is published with the data set.
    reader = Reader(uri, split.rows, split.labels)
    ids = torch.arange(0, 50_000, 10)
    mean = reader.read(ids).inputs.double().mean((0, 2, 3)) / 255
    assert torch.allclose(mean, torch.tensor([0.4914, 0.4822, 0.4465]).double(), atol=0.005)
