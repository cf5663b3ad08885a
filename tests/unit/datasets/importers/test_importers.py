from __future__ import annotations

import gzip
import io
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from labelmesh.datasets.files import join, list_files, write_atomic
from labelmesh.datasets.importing import import_dataset, importer_names
from labelmesh.datasets.manifest import check, load_index, load_info, load_labels, splits_of
from labelmesh.datasets.reader import Reader
from labelmesh.datasets.splits import make_split, published_split
from labelmesh.datasets.truth import load_truth
from PIL import Image

Data = tuple[np.ndarray, np.ndarray]


def load(uri: str, split: str) -> Data:
    """Inputs and true classes of a split, after checking the data set."""
    check(uri)
    rows = splits_of(uri)[split]
    inputs = Reader(uri, rows, torch.full((len(rows),), -1)).read(torch.arange(len(rows))).inputs
    return inputs.numpy(), load_truth(uri, rows).numpy()


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


# digits


def test_digits_are_scikit_learns(tmp_path: Path) -> None:
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


# idx


def write_idx(folder: str, name: str, values: np.ndarray, end: str = ".gz") -> None:
    head = bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">i4").tobytes()
    content = head + values.tobytes()
    write_atomic(join(folder, name + end), gzip.compress(content) if end else content)


def tiny_idx(folder: str, end: str = ".gz") -> tuple[Data, Data]:
    images, labels = random_images(13, 4, 5), (np.arange(13) % 3).astype(np.uint8)
    for prefix, part in (("train", slice(0, 9)), ("t10k", slice(9, 13))):
        write_idx(folder, f"{prefix}-images-idx3-ubyte", images[part], end)
        write_idx(folder, f"{prefix}-labels-idx1-ubyte", labels[part], end)
    return (images[:9], labels[:9]), (images[9:], labels[9:])


@pytest.mark.parametrize("source", ["{tmp}/source", "memory://idx-source"])
@pytest.mark.parametrize("end", [".gz", ""])
def test_idx_keeps_pixels_order_and_classes(tmp_path: Path, source: str, end: str) -> None:
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
    fails_with(gzip.compress(gzip.decompress(good)[:-2]), "9 bytes, but has 7; it may be cut off")
    fails_with(b"something else", "not an IDX file of uint8 with 1 dimensions")
    write_idx(source, name, np.zeros(5, np.uint8))
    with pytest.raises(ValueError, match="9 train images, but 5 labels"):
        import_dataset("idx", source, out)
    Path(f"{source}/{name}.gz").unlink()
    with pytest.raises(ValueError, match=f"has none of {name}.gz, {name}"):
        import_dataset("idx", source, out)


# sheets


def write_sheets(folder: Path) -> Data:
    """2 x 2 tiles of 3 x 3 pixels per sheet; the train set of 8 comes in swapped order."""
    folder.mkdir()
    images, labels = random_images(12, 3, 3, 3), np.arange(12) % 2
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


def test_sheets_keep_the_original_order(tmp_path: Path) -> None:
    images, labels = write_sheets(tmp_path / "source")
    uri = f"{tmp_path}/out"
    info = import_dataset("sheets", str(tmp_path / "source"), uri)
    assert (info.shape, info.classes, info.counts["train"]) == ((3, 3, 3), ("a", "b"), 8)
    inputs, truth = load(uri, "train")
    np.testing.assert_array_equal(inputs, images[[4, 5, 6, 7, 0, 1, 2, 3]])
    np.testing.assert_array_equal(truth, labels[[4, 5, 6, 7, 0, 1, 2, 3]])
    np.testing.assert_array_equal(load(uri, "test")[0], images[8:])


def test_sheets_published_val_becomes_a_split(tmp_path: Path) -> None:
    images, _ = write_sheets(tmp_path / "source")
    uri = f"{tmp_path}/out"
    info = import_dataset("sheets", str(tmp_path / "source"), uri, val="published")
    assert info.counts == {"train": 6, "val": 2, "test": 4}
    np.testing.assert_array_equal(load(uri, "val")[0], images[[4, 0]])
    assert (load_labels(uri)[6:8] >= 0).all()
    with pytest.raises(ValueError, match="must be 'train' or 'published'"):
        import_dataset("sheets", str(tmp_path / "source"), f"{tmp_path}/x", val="some")


# cifar


def tiny_cifar(fine: bool) -> tuple[dict[str, bytes], Data, Data]:
    """Files of an archive as Python 2 would have pickled them, in no helpful order."""
    pixels, labels = random_images(6, 3072), np.arange(6) % 2

    def batch(part: slice) -> bytes:
        name = b"fine_labels" if fine else b"labels"
        body = {b"data": pixels[part], name: labels[part].tolist(), b"filenames": [b"x.png"]}
        return pickle.dumps(body, protocol=2)

    names = b"fine_label_names" if fine else b"label_names"
    meta = pickle.dumps({names: [b"cat", b"dog"], b"num_cases_per_batch": 2}, protocol=2)
    if fine:
        files = {"meta": meta, "test": batch(slice(4, 6)), "train": batch(slice(0, 4))}
        files = {f"cifar-100-python/{name}": content for name, content in files.items()}
    else:
        files = {
            "cifar-10-batches-py/data_batch_2": batch(slice(2, 4)),
            "cifar-10-batches-py/readme.html": b"<html>",
            "cifar-10-batches-py/test_batch": batch(slice(4, 6)),
            "cifar-10-batches-py/batches.meta": meta,
            "cifar-10-batches-py/data_batch_1": batch(slice(0, 2)),
        }
    images = pixels.reshape(6, 3, 32, 32)
    return files, (images[:4], labels[:4]), (images[4:], labels[4:])


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_cifar_archives_keep_the_original_order(tmp_path: Path, fine: bool, packed: bool) -> None:
    files, train, test = tiny_cifar(fine)
    source = tmp_path / "cifar-python.tar.gz" if packed else tmp_path / "folder"
    if packed:
        write_archive(source, files)
    else:
        for name, content in files.items():
            write_atomic(f"{source}/{name}", content)
    uri = f"{tmp_path}/out"
    info = import_dataset("cifar", str(source), uri)
    assert (info.classes, info.shape) == (("cat", "dog"), (3, 32, 32))
    for split, (images, labels) in {"train": train, "test": test}.items():
        inputs, truth = load(uri, split)
        np.testing.assert_array_equal(inputs, images)
        np.testing.assert_array_equal(truth, labels)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/tmp/labelmesh-must-not-exist",)


def test_cifar_archive_cannot_run_code(tmp_path: Path) -> None:
    files, _, _ = tiny_cifar(False)
    files["cifar-10-batches-py/data_batch_2"] = pickle.dumps({b"data": _Evil()})
    write_archive(tmp_path / "evil.tar.gz", files)
    with pytest.raises(ValueError, match=r"data_batch_2 cannot be read .*mkdir"):
        import_dataset("cifar", f"{tmp_path}/evil.tar.gz", f"{tmp_path}/out")
    assert not os.path.exists("/tmp/labelmesh-must-not-exist")
    assert list_files(f"{tmp_path}/out") == []


def test_cifar_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    files, _, _ = tiny_cifar(False)
    del files["cifar-10-batches-py/test_batch"]
    write_archive(tmp_path / "part.tar.gz", files)
    with pytest.raises(ValueError, match="found 4 train and 0 test images"):
        import_dataset("cifar", f"{tmp_path}/part.tar.gz", f"{tmp_path}/out")
    content = (tmp_path / "part.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="not a readable tar archive"):
        import_dataset("cifar", f"{tmp_path}/cut.tar.gz", f"{tmp_path}/out")


# folder


def write_folder(folder: Path, *, prefix: str = "") -> dict[str, np.ndarray]:
    images = random_images(9, 6, 5, 3)
    names = [f"{c}/{i}.{e}" for c in ("cat", "dog") for i, e in enumerate(["png", "bmp", "a.png"])]
    names += [f"unlabeled/{i}.png" for i in range(3)]
    for name, image in zip(names, images):
        path = folder / prefix / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    (folder / "notes.txt").write_text("no image")
    return {prefix + name.replace(".", "_"): image for name, image in zip(names, images)}


def test_folder_names_classes_and_leaves_the_unlabeled_unknown(tmp_path: Path) -> None:
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


def test_folder_with_splits_sizes_and_channels(tmp_path: Path) -> None:
    for prefix in ("train/", "test/"):
        write_folder(tmp_path / "pets", prefix=prefix)
    info = import_dataset("folder", f"{tmp_path}/pets", f"{tmp_path}/out", size=[8, 4], channels=1)
    assert info.counts == {"train": 9, "val": 0, "test": 9}
    assert load(f"{tmp_path}/out", "test")[0].shape == (9, 1, 8, 4)


def test_folder_test_share_is_drawn_from_known_classes(tmp_path: Path) -> None:
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
    Image.fromarray(random_images(7, 7, 3)).save(tmp_path / "pets/dog/big.png")
    with pytest.raises(ValueError, match=r"'dog/big_png' has shape \(3, 7, 7\)"):
        import_dataset("folder", f"{tmp_path}/pets", f"{tmp_path}/out")
    import_dataset("folder", f"{tmp_path}/pets", f"{tmp_path}/out", size=(6, 5))


# embeddings


FEATURES = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
LABELS = np.where(np.arange(20) % 4 == 3, -1, np.arange(20) % 3)


def write_embeddings(path: Path) -> None:
    if path.suffix == ".npz":
        np.savez(path, X=FEATURES.astype(np.float64), y=LABELS)
    elif path.suffix == ".npy":
        np.save(path, FEATURES)
    else:
        lists = pa.FixedSizeListArray.from_arrays(pa.array(FEATURES.ravel()), 4)
        labels = pa.array([None if label < 0 else label for label in LABELS.tolist()])
        pq.write_table(pa.table({"features": lists, "label": labels}), path)


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.parquet"])
def test_embeddings_keep_rows_and_labels(tmp_path: Path, name: str) -> None:
    write_embeddings(tmp_path / name)
    info = import_dataset("embeddings", f"{tmp_path}/{name}", f"{tmp_path}/out")
    assert (info.kind, info.shape) == ("embedding", (4,))
    inputs, truth = load(f"{tmp_path}/out", "train")
    np.testing.assert_array_equal(inputs, FEATURES)
    expected = np.full(20, -1) if name == "a.npy" else LABELS
    np.testing.assert_array_equal(truth, expected)
    np.testing.assert_array_equal(load_labels(f"{tmp_path}/out").numpy(), expected)


def test_embeddings_test_share_keeps_the_classes_in_proportion(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "a.npz")
    import_dataset("embeddings", f"{tmp_path}/a.npz", f"{tmp_path}/out", test_share=0.2)
    assert sorted(load(f"{tmp_path}/out", "test")[1]) == [0, 1, 2]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"X": np.ones((3, 2)), "y": np.zeros(2, int)}, r"labels of shape \(2,\)"),
        ({"X": np.ones((3, 2)), "y": np.zeros(3)}, "type float64; expected 3 integers"),
        ({"X": np.ones((3, 2)), "y": np.array([0, -2, 0])}, "label -2"),
        ({"X": np.ones(3)}, "one row per sample"),
        ({"X": np.array([[1.0, 2], [3, np.nan]])}, "row 1 has NaN"),
        ({"Z": np.ones((3, 2))}, r"arrays \['Z'\], but no `features`"),
        ({"X": np.array([{}], object)}, "no .npz, .npy or .parquet|allow_pickle"),
    ],
)
def test_wrong_embeddings_are_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        import_dataset("embeddings", f"{tmp_path}/a.npz", f"{tmp_path}/out")


# all of them


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


# real data


def real(name: str) -> str:
    root = os.environ.get("LABELMESH_DATA")
    if not root:
        pytest.skip("set LABELMESH_DATA to the folder of data sets")
    return f"{root}/{name}"


@pytest.mark.data
@pytest.mark.slow
def test_fashion_mnist_is_imported_whole(tmp_path: Path) -> None:
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
