"""Columns in files: what is read, how labels are joined, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from labelmesh.cluster import feature_rows
from labelmesh.cluster.column_files import open_columns
from labelmesh.cluster.columns import Columns, join_labels, read_columns
from labelmesh.cluster.feature_rows import ArrayRows, as_array, float_blocks, take_rows


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
    with pytest.raises(ValueError, match=r"cannot read .txt files; use .npy, .npz, .csv"):
        read_columns("x.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no .parquet files in this folder"):
        read_columns(str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError):
        read_columns(str(tmp_path / "missing.npz"))


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"x\.npy"):
        read_columns(str(tmp_path / "x.npy"))


def test_a_mapped_file_is_used_as_it_lies(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    features = read_columns(str(tmp_path / "x.npy")).features
    assert isinstance(features, np.memmap)
    assert features.flags.writeable
    features[0] = 7
    np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), x)


@pytest.mark.parametrize("kind", ["f2", "f8", "i4", ">f4", "F"])
def test_other_numbers_become_float32_block_by_block(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_rows, "_BLOCK_NUMBERS", 30)
    x = np.random.default_rng(0).normal(size=(50, 4)) * 100
    stored = np.asfortranarray(x, np.float32) if kind == "F" else x.astype(kind)
    np.save(tmp_path / "x.npy", stored)
    features = read_columns(str(tmp_path / "x.npy")).features
    assert features is not None
    assert features.dtype == np.dtype("float32")
    assert features.dtype.isnative
    np.testing.assert_array_equal(features, stored.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_folder_of_parquet_is_read_in_the_order_of_its_files(
    tmp_path: Path, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_rows, "_BLOCK_NUMBERS", 20)
    x = np.random.default_rng(0).normal(size=(45, 3)).astype(dtype)
    for number, rows in enumerate(np.split(np.arange(45), [20, 25])):
        column = pa.FixedSizeListArray.from_arrays(pa.array(x[rows].ravel()), 3)
        table = pa.table({"features": column, "node_id": rows, "label": rows % 3 - 1})
        pq.write_table(table, tmp_path / f"part-{number}.parquet")
    columns = read_columns(str(tmp_path))
    assert columns.features is not None
    assert columns.labels is not None
    assert columns.keys is not None
    np.testing.assert_array_equal(columns.features, x.astype(np.float32))
    np.testing.assert_array_equal(columns.labels, np.arange(45) % 3 - 1)
    np.testing.assert_array_equal(columns.keys, np.arange(45))
    rows = open_columns(str(tmp_path)).features
    assert rows is not None
    assert (rows.shape, rows.dtype) == ((45, 3), np.dtype(dtype))
    assert max(len(block) for block in rows.blocks()) <= 6
    some = np.array([0, 3, 19, 20, 44])
    np.testing.assert_array_equal(take_rows(rows, some), x[some].astype(np.float32))
    kept = [block for _, block in float_blocks(rows, "x", keep="float16")]
    assert {block.dtype for block in kept} == {np.dtype(dtype if dtype == np.float16 else "f4")}


def test_files_of_a_folder_must_fit_each_other(tmp_path: Path) -> None:
    for number, table in enumerate(
        ({"features": [[1.0, 2.0]]}, {"features": [[1.0]]}, {"other": [[1.0, 2.0]]})
    ):
        pq.write_table(pa.table(table), tmp_path / f"{number}.parquet")
    with pytest.raises(ValueError, match=r"2.parquet has other columns"):
        read_columns(str(tmp_path))
    (tmp_path / "2.parquet").unlink()
    with pytest.raises(ValueError, match="not all of one length"):
        read_columns(str(tmp_path))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_rows_with_nan_are_named(bad: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_rows, "_BLOCK_NUMBERS", 200)
    x = np.zeros((100, 2))
    x[[40, 41, 99], 1] = bad
    with pytest.raises(ValueError, match=r"x.npy: rows 40, 41, 99 contain NaN, or what is inf"):
        as_array(ArrayRows(x), "x.npy")


def test_labels_may_be_names(tmp_path: Path) -> None:
    names = ["cat", "", "ant", "-1", "cat"]
    np.save(tmp_path / "y.npy", np.array(names))
    pq.write_table(
        pa.table({"label": pa.array(["cat", None, "ant", "", "cat"]).dictionary_encode()}),
        tmp_path / "y.parquet",
    )
    (tmp_path / "y.csv").write_text("label\n" + "\n".join(n or '""' for n in names) + "\n")
    np.savez(tmp_path / "y.npz", labels=np.array(names, "S3"))
    for path in sorted(tmp_path.iterdir()):
        columns = read_columns(str(path))
        assert columns.labels is not None
        assert columns.classes is not None
        assert columns.labels.tolist() == [1, -1, 0, -1, 1]
        assert columns.classes.tolist() == ["ant", "cat"]


def test_missing_numbers_are_unlabeled(tmp_path: Path) -> None:
    pq.write_table(pa.table({"label": pa.array([3, None, 0])}), tmp_path / "y.parquet")
    (tmp_path / "y.csv").write_text("key,label\na,3\nb,\nc,0\n")
    for name in ("y.parquet", "y.csv"):
        columns = read_columns(str(tmp_path / name))
        assert columns.labels is not None
        assert columns.labels.tolist() == [3, -1, 0]
        assert columns.classes is None


def test_labels_are_joined_by_row(tmp_path: Path) -> None:
    columns = Columns(np.zeros((4, 2), np.float32))
    (tmp_path / "y.csv").write_text("row,label\n2,dog\n0,cat\n")
    joined = join_labels(columns, read_columns(str(tmp_path / "y.csv")), "y.csv")
    assert joined.labels is not None
    assert joined.classes is not None
    assert joined.labels.tolist() == [0, -1, 1, -1]
    assert joined.classes.tolist() == ["cat", "dog"]
    for rows, sentence in (([0, 4], "row 4 is not in 0..3"), ([1, 1], "1 rows come more than")):
        wrong = Columns(labels=np.array([0, 1]), rows=np.array(rows))
        with pytest.raises(ValueError, match=sentence):
            join_labels(columns, wrong, "y")
    with pytest.raises(ValueError, match="3 labels for 4 rows of features; give one per row"):
        join_labels(columns, Columns(labels=np.array([0, 1, 2])), "y")
    with pytest.raises(ValueError, match="no labels in it"):
        join_labels(columns, Columns(), "y")


def test_keys_that_come_twice_are_refused() -> None:
    features = np.zeros((3, 2), np.float32)
    once, twice = np.array(["a", "b", "c"]), np.array(["a", "b", "a"])
    for ours, theirs, sentence in (
        (twice, once, r"the features: 1 keys come more than once \('a'\)"),
        (once, twice, "y: 1 keys come more than once"),
    ):
        with pytest.raises(ValueError, match=sentence):
            join_labels(
                Columns(features, keys=ours), Columns(labels=np.arange(3), keys=theirs), "y"
            )


def test_lengths_must_fit(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", features=np.zeros((3, 2)), labels=np.zeros(2, np.int64))
    with pytest.raises(ValueError, match="3 rows of features, 2 labels; give one of each"):
        read_columns(str(tmp_path / "x.npz"))
