"""Snapshots on local and remote file systems."""

from __future__ import annotations

import json
import uuid
from pathlib import Path

import fsspec
import pytest
import torch
from labelmesh.graph_store.snapshot import (
    commit,
    new_version,
    read_manifest,
    read_rows,
    write_part,
)
from labelmesh.graph_store.snapshot_manifest import Part
from labelmesh.graph_store.store import StoreSpec
from torch import Tensor

SPEC = StoreSpec(num_nodes=10, dim=2, num_classes=3, k=1)
BOUNDS = (0, 4, 10)


@pytest.fixture(params=["local", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    remote = f"memory://{uuid.uuid4().hex}/store"
    return str(tmp_path / "a store") if request.param == "local" else remote


def contents(start: int, stop: int, shift: int = 0) -> dict[str, dict[str, Tensor]]:
    """Two parts that share a column, of the nodes start..stop-1."""
    ids = torch.arange(start, stop) + shift
    features = torch.stack([ids, -ids], 1).half()
    return {
        "table": {"features": features, "present": ids % 3 == 0},
        "round.7": {"features": features, "neighbor_ids": ids[:, None] + 1},
    }


def write(uri: str, shift: int = 0) -> list[Part]:
    version = new_version(uri)
    parts = [write_part(uri, version, s, contents(*BOUNDS[s : s + 2], shift)) for s in (0, 1)]
    commit(uri, version, SPEC, BOUNDS, parts)
    return parts


@pytest.mark.parametrize(("start", "stop"), [(0, 10), (0, 3), (2, 7), (4, 10), (9, 10)])
def test_any_range_of_rows_can_be_read(uri: str, start: int, stop: int) -> None:
    write(uri)
    rows = read_rows(uri, read_manifest(uri), start, stop)
    expected = contents(start, stop)
    assert rows.keys() == expected.keys()
    for part, columns in expected.items():
        assert rows[part].keys() == columns.keys()
        for name, column in columns.items():
            assert torch.equal(rows[part][name], column)
            assert rows[part][name].dtype == column.dtype


def test_manifest_holds_the_shape_of_the_store(uri: str) -> None:
    write(uri)
    manifest = read_manifest(uri)
    assert manifest.spec == SPEC
    assert manifest.bounds == BOUNDS


def test_shared_columns_are_written_and_read_once(uri: str) -> None:
    part = write(uri)[0]
    assert part.names["round.7"]["features"] == part.names["table"]["features"]
    rows = read_rows(uri, read_manifest(uri), 0, 10)
    assert rows["round.7"]["features"] is rows["table"]["features"]


def test_views_of_one_memory_may_be_written() -> None:
    uri = f"memory://{uuid.uuid4().hex}"
    labels = torch.arange(10)
    version = new_version(uri)
    part = write_part(uri, version, 0, {"a": {"x": labels}, "b": {"x": labels[:, None]}})
    commit(uri, version, SPEC, (0, 10), [part])
    rows = read_rows(uri, read_manifest(uri), 0, 10)
    assert rows["a"]["x"].shape == (10,)
    assert rows["b"]["x"].shape == (10, 1)


def test_parts_that_only_some_shards_have_are_left_out(uri: str) -> None:
    version = new_version(uri)
    with_graph = contents(0, 4) | {"staged": {"x": torch.zeros(4)}}
    parts = [write_part(uri, version, 0, with_graph)]
    parts.append(write_part(uri, version, 1, contents(4, 10)))
    commit(uri, version, SPEC, BOUNDS, parts)
    manifest = read_manifest(uri)
    assert "staged" in read_rows(uri, manifest, 0, 4)
    assert "staged" not in read_rows(uri, manifest, 0, 5)


def test_a_snapshot_that_was_cut_off_leaves_the_one_before_it(uri: str) -> None:
    write(uri, shift=0)
    version = new_version(uri)
    write_part(uri, version, 0, contents(0, 4, shift=100))
    rows = read_rows(uri, read_manifest(uri), 0, 10)
    assert torch.equal(rows["round.7"]["neighbor_ids"][:, 0], torch.arange(1, 11))


def test_a_snapshot_replaces_the_one_before_it_and_what_was_cut_off(uri: str) -> None:
    write(uri)
    write_part(uri, new_version(uri), 0, contents(0, 4, shift=100))
    write(uri, shift=50)
    rows = read_rows(uri, read_manifest(uri), 0, 1)
    assert rows["round.7"]["neighbor_ids"].item() == 51
    fs, root = fsspec.core.url_to_fs(uri)
    names = {path.rsplit("/", 1)[-1] for path in fs.ls(root, detail=False)}
    assert names == {"CURRENT", "v000003"}


def test_no_snapshot_at_all(uri: str) -> None:
    with pytest.raises(ValueError, match="there is no complete snapshot of a store here"):
        read_manifest(uri)


def test_a_damaged_snapshot_is_refused(tmp_path: Path) -> None:
    write(str(tmp_path))
    file = tmp_path / "v000001" / "shard-0001.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"shard-0001.safetensors has \d+ bytes, the manifest"):
        read_manifest(str(tmp_path))
    file.unlink()
    with pytest.raises(ValueError, match=r"shard-0001.safetensors has None bytes"):
        read_manifest(str(tmp_path))


def test_a_snapshot_of_another_format_is_refused(tmp_path: Path) -> None:
    write(str(tmp_path))
    file = tmp_path / "v000001" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": 2}))
    with pytest.raises(ValueError, match="the snapshot has format 2, this version reads 1"):
        read_manifest(str(tmp_path))


def test_a_part_that_lies_elsewhere_keeps_the_snapshot_before(uri: str) -> None:
    write(uri)
    version = new_version(uri)
    parts = [write_part(uri, version, s, contents(*BOUNDS[s : s + 2], 50)) for s in (0, 1)]
    fs, root = fsspec.core.url_to_fs(uri)
    fs.rm(f"{root}/{version}/{parts[1].file}")
    with pytest.raises(ValueError, match=r"has None bytes here.*use a URI that all nodes share"):
        commit(uri, version, SPEC, BOUNDS, parts)
    rows = read_rows(uri, read_manifest(uri), 0, 1)
    assert rows["round.7"]["neighbor_ids"].item() == 1
