from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from labelmesh.datasets.manifest import (
    check,
    load_index,
    load_info,
    load_labels,
    splits_of,
    statistics,
)
from labelmesh.datasets.reader import Reader
from labelmesh.datasets.truth import load_truth

MakeImages = Callable[..., np.ndarray]


def rewrite(path: Path, **columns: object) -> None:
    """Replace columns of a manifest; None drops one."""
    table = pq.read_table(path / "manifest.parquet")
    for name, values in columns.items():
        place = table.column_names.index(name)
        if values is None:
            table = table.remove_column(place)
        else:
            table = table.set_column(place, name, pa.array(values))
    pq.write_table(table, path / "manifest.parquet")


def column(path: Path, name: str) -> list[object]:
    return pq.read_table(path / "manifest.parquet")[name].to_pylist()


def test_manifest_lists_train_first_and_hides_test_labels(
    tmp_path: Path, make_images: MakeImages
) -> None:
    make_images(str(tmp_path), 10)
    check(str(tmp_path))
    assert column(tmp_path, "node_id") == list(range(15))
    assert column(tmp_path, "split") == ["train"] * 10 + ["test"] * 5
    assert load_labels(str(tmp_path)).tolist() == [i % 3 for i in range(10)] + [-1] * 5
    assert load_truth(str(tmp_path), torch.tensor([12, 0])).tolist() == [2, 0]
    rows = splits_of(str(tmp_path))
    assert {name: len(r) for name, r in rows.items()} == {"train": 10, "val": 0, "test": 5}
    assert load_info(str(tmp_path)).counts == {"train": 10, "val": 0, "test": 5}


def test_statistics_count_labels(tmp_path: Path, make_images: MakeImages) -> None:
    make_images(str(tmp_path), 10)
    facts = statistics(str(tmp_path))
    assert facts["train_labels_per_class"] == {"a": 4, "b": 3, "c": 3}
    assert (facts["num_shards"], facts["train_unlabeled"]) == (3, 0)


def test_readers_of_inputs_do_not_touch_labels_or_truth(
    tmp_path: Path, make_images: MakeImages
) -> None:
    """The bytes of the two columns are overwritten: whoever reads them fails."""
    train = make_images(str(tmp_path), 10)
    manifest = tmp_path / "manifest.parquet"
    content = bytearray(manifest.read_bytes())
    group = pq.ParquetFile(manifest).metadata.row_group(0)
    for i in range(group.num_columns):
        chunk = group.column(i)
        if chunk.path_in_schema in ("label", "truth"):
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            content[start : start + chunk.total_compressed_size] = (
                b"\xff" * chunk.total_compressed_size
            )
    manifest.write_bytes(content)
    for read in (load_labels, lambda uri: load_truth(uri, torch.arange(3))):
        with pytest.raises(OSError):  # noqa: PT011 the text is Arrow's
            read(str(tmp_path))
    assert len(load_index(str(tmp_path))) == 15
    reader = Reader(str(tmp_path), torch.arange(10), torch.full((10,), -1))
    np.testing.assert_array_equal(reader.read(torch.arange(10)).inputs.numpy(), train)


def test_manifest_without_places_is_completed_from_the_shards(
    tmp_path: Path, make_images: MakeImages
) -> None:
    make_images(str(tmp_path), 10)
    expected = load_index(str(tmp_path))
    rewrite(tmp_path, offset=None, size=None)
    index = load_index(str(tmp_path))
    np.testing.assert_array_equal(index.offsets, expected.offsets)
    np.testing.assert_array_equal(index.sizes, expected.sizes)


def test_missing_data_set_says_what_to_do(tmp_path: Path) -> None:
    for call in (load_info, load_index, load_labels, splits_of, check, statistics):
        with pytest.raises(ValueError, match="labelmesh data import"):
            call(f"{tmp_path}/none")
    with pytest.raises(ValueError, match="Protocol not known"):
        load_info("nonsense://x")


def test_other_format_version_is_refused(tmp_path: Path, make_images: MakeImages) -> None:
    make_images(str(tmp_path), 4)
    path = tmp_path / "dataset.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(ValueError, match="format_version = 9"):
        load_info(str(tmp_path))
    path.write_text("{")
    with pytest.raises(ValueError, match="import it again"):
        load_info(str(tmp_path))


def test_check_names_what_is_wrong_in_the_manifest(tmp_path: Path, make_images: MakeImages) -> None:
    make_images(str(tmp_path), 10)
    good = {n: column(tmp_path, n) for n in ("key", "label", "node_id", "size", "truth", "split")}
    wrong = {
        "two samples have the key 'train-000'": {"key": ["train-000"] * 2 + good["key"][2:]},
        "sample 'train-001' has label 3": {"label": [0, 3, *good["label"][2:]]},
        "must be numbered": {"node_id": good["node_id"][::-1]},
        "manifest has .* 9, .* dataset.json": {"split": ["train"] * 9 + ["test"] * 6},
        "sample 'train-002' should have": {"size": [*good["size"][:2], 1, *good["size"][3:]]},
        "sample 'other' should have .* no such sample": {"key": ["other", *good["key"][1:]]},
    }
    for message, columns in wrong.items():
        rewrite(tmp_path, **columns)
        with pytest.raises(ValueError, match=message):
            check(str(tmp_path))
        rewrite(tmp_path, **good)
    check(str(tmp_path))
    rewrite(tmp_path, key=None)
    with pytest.raises(ValueError, match="no column 'key'"):
        check(str(tmp_path))


@pytest.mark.parametrize("deep", [True, False])
def test_check_names_a_missing_cut_off_or_stray_shard(
    tmp_path: Path,
    make_images: MakeImages,
    deep: bool,
) -> None:
    make_images(str(tmp_path), 10)
    shard = tmp_path / "shards" / "train-000001.tar"
    content = shard.read_bytes()
    for name, change in {
        "train-000001.tar is cut off": lambda: os.truncate(shard, 1500),
        "train-000001.tar, but it is missing": shard.unlink,
        "stray.tar is not in the manifest": lambda: (shard.parent / "stray.tar").touch(),
    }.items():
        change()
        with pytest.raises(ValueError, match=name):
            check(str(tmp_path), deep=deep)
        shard.write_bytes(content)


def test_check_names_a_sample_that_the_manifest_does_not_list(
    tmp_path: Path, make_images: MakeImages
) -> None:
    make_images(str(tmp_path), 5)
    shard = tmp_path / "shards" / "train-000000.tar"
    with tarfile.open(shard, "a") as tar:
        tar.addfile(tarfile.TarInfo("more.png"), io.BytesIO())
    check(str(tmp_path), deep=False)
    with pytest.raises(ValueError, match="holds 6 samples, the manifest lists 5; 'more'"):
        check(str(tmp_path))


def test_truth_of_a_row_that_is_not_there_is_an_error(
    tmp_path: Path, make_images: MakeImages
) -> None:
    make_images(str(tmp_path), 4)
    with pytest.raises(ValueError, match="row 6, but there are 6"):
        load_truth(str(tmp_path), torch.tensor([6]))
