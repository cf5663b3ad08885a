from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelmesh.datasets.importing import import_dataset
from labelmesh.datasets.manifest import load_index, load_labels

Load = Callable[[str, str], tuple[np.ndarray, np.ndarray]]


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
def test_embeddings_keep_rows_and_labels(load: Load, tmp_path: Path, name: str) -> None:
    write_embeddings(tmp_path / name)
    info = import_dataset("embeddings", f"{tmp_path}/{name}", f"{tmp_path}/out")
    assert (info.kind, info.shape) == ("embedding", (4,))
    inputs, truth = load(f"{tmp_path}/out", "train")
    np.testing.assert_array_equal(inputs, FEATURES)
    expected = np.full(20, -1) if name == "a.npy" else LABELS
    np.testing.assert_array_equal(truth, expected)
    np.testing.assert_array_equal(load_labels(f"{tmp_path}/out").numpy(), expected)


def test_embeddings_test_share_keeps_the_classes_in_proportion(load: Load, tmp_path: Path) -> None:
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
        ({"X": np.array([{}], object)}, "no readable .npz, .*Python objects"),
    ],
)
def test_wrong_embeddings_are_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], message: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=message):
        import_dataset("embeddings", f"{tmp_path}/a.npz", f"{tmp_path}/out")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]], r"have the lengths \[1, 2, 3\]; expected one"),
        ([1.0, 2.0], "`features` has type double; expected lists"),
        ([[1.0, 2.0], None], "row 1 has no features"),
    ],
)
def test_wrong_parquet_rows_are_named(tmp_path: Path, rows: list[Any], message: str) -> None:
    pq.write_table(pa.table({"features": rows}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=message):
        import_dataset("embeddings", f"{tmp_path}/a.parquet", f"{tmp_path}/out")


@pytest.mark.parametrize("name", ["a.npz", "a.npy", "a.parquet"])
def test_damaged_embeddings_are_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write_embeddings(path)
    whole = path.read_bytes()
    draw = np.random.default_rng(1)
    for _ in range(40):
        content = bytearray(whole[: draw.integers(1, len(whole))])
        content[draw.integers(len(content))] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{name}: no"):
            import_dataset("embeddings", str(path), f"{tmp_path}/out")


def test_damaged_member_of_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, X=np.zeros((20, 4)))
    content = bytearray(path.read_bytes())
    content[50:60] = b"\xff" * 10
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no readable"):
        import_dataset("embeddings", str(path), f"{tmp_path}/out")


@pytest.mark.parametrize("name", ["a.npz", "a.parquet"])
def test_keys_and_classes_of_bytes_are_text(tmp_path: Path, name: str) -> None:
    keys = [b"a", "ü".encode()]
    if name == "a.npz":
        np.savez(tmp_path / name, X=np.eye(2), y=[0, 1], keys=keys, classes=[b"cat", b"dog"])
    else:
        pq.write_table(pa.table({"features": [[1.0], [2.0]], "key": keys}), tmp_path / name)
    info = import_dataset("embeddings", f"{tmp_path}/{name}", f"{tmp_path}/out")
    assert load_index(f"{tmp_path}/out").keys.to_pylist() == ["a", "ü"]
    assert info.classes == (("cat", "dog") if name == "a.npz" else ())
