from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labelmesh.datasets.files import list_files, write_atomic
from labelmesh.datasets.importing import import_dataset

Data = tuple[np.ndarray, np.ndarray]
Load = Callable[[str, str], Data]


def tiny_cifar(fine: bool) -> tuple[dict[str, bytes], Data, Data]:
    """Files of an archive as Python 2 would have pickled them, in no helpful order."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 3072), dtype=np.uint8)
    labels = np.arange(12) % 2

    def batch(part: slice) -> bytes:
        name = b"fine_labels" if fine else b"labels"
        body = {b"data": pixels[part], name: labels[part].tolist(), b"filenames": [b"x.png"]}
        return pickle.dumps(body, protocol=2)

    names = b"fine_label_names" if fine else b"label_names"
    meta = pickle.dumps({names: [b"cat", b"dog"], b"num_cases_per_batch": 2}, protocol=2)
    if fine:
        files = {"meta": meta, "test": batch(slice(10, 12)), "train": batch(slice(0, 10))}
        files = {f"cifar-100-python/{name}": content for name, content in files.items()}
    else:
        files = {
            "data_batch_2": batch(slice(2, 4)),
            "readme.html": b"<html>",
            "test_batch": batch(slice(10, 12)),
            "batches.meta": meta,
        }
        files |= {f"data_batch_{i}": batch(slice(2 * i - 2, 2 * i)) for i in (5, 1, 3, 4)}
        files = {f"cifar-10-batches-py/{name}": content for name, content in files.items()}
    images = pixels.reshape(12, 3, 32, 32)
    return files, (images[:10], labels[:10]), (images[10:], labels[10:])


def write_archive(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.mark.parametrize("fine", [False, True])
@pytest.mark.parametrize("packed", [False, True])
def test_cifar_archives_keep_the_original_order(
    load: Load, tmp_path: Path, fine: bool, packed: bool
) -> None:
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
    with pytest.raises(ValueError, match="found 10 train and 0 test images"):
        import_dataset("cifar", f"{tmp_path}/part.tar.gz", f"{tmp_path}/out")
    content = (tmp_path / "part.tar.gz").read_bytes()
    (tmp_path / "cut.tar.gz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match="not a readable tar archive"):
        import_dataset("cifar", f"{tmp_path}/cut.tar.gz", f"{tmp_path}/out")


def test_cifar10_needs_its_five_batches_of_one_size(tmp_path: Path) -> None:
    files, _, _ = tiny_cifar(False)
    folder = "cifar-10-batches-py"

    def fails_with(files: dict[str, bytes], message: str) -> None:
        write_archive(tmp_path / "a.tar.gz", files)
        with pytest.raises(ValueError, match=message):
            import_dataset("cifar", f"{tmp_path}/a.tar.gz", f"{tmp_path}/out")

    gap = {name: content for name, content in files.items() if not name.endswith("batch_3")}
    fails_with(gap, "has no data_batch_3; it may be cut off")
    fails_with(files | {f"{folder}/data_batch_6": files[f"{folder}/data_batch_1"]}, "data_batch_6")
    short = pickle.loads(files[f"{folder}/data_batch_4"], encoding="bytes")
    short = pickle.dumps({key: value[:1] for key, value in short.items()}, protocol=2)
    fails_with(files | {f"{folder}/data_batch_4": short}, "differ .*'data_batch_4': 1")
