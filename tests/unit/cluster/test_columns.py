"""Columns in files: what is read, how labels are joined, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelmesh.cluster.columns import Columns, join_labels, read_columns


def write_features(path: Path, features: np.ndarray, labels: np.ndarray, keys: list[str]) -> None:
    if path.suffix == ".npz":
        np.savez(path, features=features, labels=labels, keys=np.array(keys))
    else:
        column = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
        pq.write_table(pa.table({"key": keys, "features": column, "label": labels}), path)


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
def test_files_give_features_labels_and_keys(tmp_path: Path, ending: str) -> None:
    features = np.random.default_rng(0).normal(size=(15, 3)).astype(np.float32)
    labels = np.arange(15) % 4 - 1
    keys = [f"s{i}" for i in range(15)]
    path = tmp_path / f"x{ending}"
    write_features(path, features, labels, keys)
    columns = read_columns(str(path))
    assert columns.features is not None
    assert columns.labels is not None
    assert columns.keys is not None
    np.testing.assert_array_equal(columns.features, features)
    np.testing.assert_array_equal(columns.labels, labels)
    assert columns.keys.tolist() == keys


def test_a_variable_list_column_is_read_and_a_ragged_one_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"embedding": [[1.0, 2.0], [3.0, 4.0]]}), tmp_path / "a.parquet")
    np.testing.assert_array_equal(
        read_columns(str(tmp_path / "a.parquet")).features, [[1.0, 2.0], [3.0, 4.0]]
    )
    for number, rows in enumerate(([[1.0, 2.0], [3.0]], [[1.0], [2.0, 3.0, 4.0]])):
        pq.write_table(pa.table({"embedding": rows}), tmp_path / f"{number}.parquet")
        with pytest.raises(ValueError, match="not all of one length"):
            read_columns(str(tmp_path / f"{number}.parquet"))


def test_npy_of_two_dimensions_is_features_and_of_one_labels(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((4, 2)))
    np.save(tmp_path / "y.npy", np.array([0, -1, -1, 1]))
    x, y = read_columns(str(tmp_path / "x.npy")), read_columns(str(tmp_path / "y.npy"))
    assert (x.labels, y.features) == (None, None)
    joined = join_labels(x, y, "y.npy").labels
    assert joined is not None
    assert joined.tolist() == [0, -1, -1, 1]


def test_labels_are_joined_by_key() -> None:
    columns = Columns(np.zeros((4, 2), np.float32), None, np.array(["d", "a", "c", "b"]))
    labels = Columns(None, np.array([5, 6]), np.array(["c", "d"]))
    joined = join_labels(columns, labels, "y").labels
    assert joined is not None
    assert joined.tolist() == [6, -1, 5, -1]
    stranger = Columns(None, np.array([5, 6]), np.array(["c", "z"]))
    with pytest.raises(ValueError, match="1 keys have no features, the first is 'z'"):
        join_labels(columns, stranger, "y")


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"features": np.zeros((3, 2, 2))}, r"features of shape \(3, 2, 2\)"),
        ({"features": np.zeros((3, 2)), "labels": np.zeros(3)}, "labels of shape .* float64"),
        ({"features": np.array([["a", "b"]])}, "type <U1"),
    ],
)
def test_wrong_arrays_are_named(
    tmp_path: Path, arrays: dict[str, np.ndarray], sentence: str
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(ValueError, match=sentence):
        read_columns(str(tmp_path / "x.npz"))


def test_wrong_files_are_named(tmp_path: Path) -> None:
    for name in ("x.npz", "x.npy", "x.parquet"):
        (tmp_path / name).write_bytes(b"nonsense")
        with pytest.raises(ValueError, match=f"{name}: not a readable"):
            read_columns(str(tmp_path / name))
    with pytest.raises(ValueError, match=r"cannot read .csv files"):
        read_columns("x.csv")
    with pytest.raises(FileNotFoundError):
        read_columns(str(tmp_path / "missing.npz"))


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"x\.npy"):
        read_columns(str(tmp_path / "x.npy"))
