"""What a snapshot, a log or an address says is believed only where labelmesh could have said it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from labelmesh.datasets.files import _REFUSED as REFUSED_FOR_DATA
from labelmesh.graph_store.journal import Journal
from labelmesh.graph_store.journal_files import JournalError
from labelmesh.graph_store.journal_frames import Record, decode, encode
from labelmesh.graph_store.local_store import LocalStore
from labelmesh.graph_store.places import REFUSED
from labelmesh.graph_store.recovery import prepare_logs
from labelmesh.graph_store.shard_state import ShardState
from labelmesh.graph_store.snapshot import read_manifest
from labelmesh.graph_store.storage import Storage
from labelmesh.graph_store.store import StoreSpec

SPEC = StoreSpec(num_nodes=6, dim=2, num_classes=3, k=2)
Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    "uri",
    [
        "reference://x",
        "REFERENCE://x",
        "simplecache::reference://x",
        "filecache::generic://x",
        "dask://x",
    ],
)
def test_addresses_that_give_orders_are_refused(uri: str) -> None:
    for act in (LocalStore.restore, read_manifest, Storage):
        with pytest.raises(ValueError, match=r"protocol '.*' is not allowed"):
            act(uri)
    with pytest.raises(ValueError, match="is not allowed"):
        prepare_logs(uri, "store-0")
    with pytest.raises(ValueError, match="is not allowed"):
        Journal(uri, "store-0")


def test_stores_refuse_what_data_sets_refuse() -> None:
    assert REFUSED == REFUSED_FOR_DATA


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A snapshot of six nodes, beside a file that it has no business with."""
    with LocalStore(SPEC) as made:
        made.put(torch.arange(6), torch.arange(12.0).reshape(6, 2))
        made.update_knn()
        made.snapshot(str(tmp_path / "store"))
    secret = tmp_path / "shard-0000.safetensors"
    secret.write_bytes((tmp_path / "store/v000001/shard-0000.safetensors").read_bytes())
    return tmp_path / "store"


def set_part(key: str, value: object) -> Change:
    return lambda body: body["parts"][0].update({key: value})


def set_spec(**changes: object) -> Change:
    return lambda body: body["spec"].update(changes)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_part("file", "../../shard-0000.safetensors"), "names the file '../../shard-0000"),
        (set_part("file", "/etc/passwd"), "names the file '/etc/passwd'"),
        (set_part("file", "s3://bucket/shard-0000.safetensors"), "names the file 's3://"),
        (set_part("file", ["shard-0000.safetensors"]), "names the file "),
        (set_part("size_bytes", "all"), "says nothing of use about shard-0000"),
        (set_part("names", []), "says nothing of use about shard-0000"),
        (set_part("run", "me"), "unexpected keyword argument 'run'"),
        (set_spec(num_nodes=-6), "has num_nodes = -6"),
        (set_spec(dim=True), "has dim = True"),
        (set_spec(metric="os.system"), "has metric = 'os.system'"),
        (set_spec(num_nodes=7), "divides 7 nodes at "),
        (set_spec(dim=10**12), "says 6 nodes of 4000000000012 bytes, its files have "),
        (lambda body: body.update(bounds=[0, 9, 6]), "divides 6 nodes at "),
        (lambda body: body.update(bounds=[0, 6.0]), "divides 6 nodes at "),
        (lambda body: body.update(bounds=7), "not iterable"),
        (lambda body: body.update(parts=body["parts"] * 2, bounds=[0, 3, 6]), "one file twice"),
        (lambda body: body.pop("spec"), "has no 'spec'"),
        (lambda body: body.update(format=9), "has format 9"),
    ],
)
def test_manifest_that_leads_elsewhere_or_says_too_much_is_refused(
    store: Path, change: Change, reason: str
) -> None:
    path = store / "v000001/manifest.json"
    body = json.loads(path.read_text())
    change(body)
    path.write_text(json.dumps(body))
    with pytest.raises(ValueError, match=reason):
        LocalStore.restore(str(store))


@pytest.mark.parametrize("folder", ["../v000001", "/etc", "v000001/../..", "", None, 7])
def test_pointer_that_leads_elsewhere_is_refused(store: Path, folder: object) -> None:
    (store / "CURRENT").write_text(json.dumps({"folder": folder}))
    with pytest.raises(ValueError, match="the pointer names the file"):
        LocalStore.restore(str(store))


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff\xfe"])
def test_pointer_that_is_no_object_is_refused(store: Path, content: bytes) -> None:
    (store / "CURRENT").write_bytes(content)
    with pytest.raises(ValueError, match="no JSON object"):
        LocalStore.restore(str(store))


@pytest.mark.parametrize("segments", [[["../../x", -1]], [["/etc/passwd", 0]], 7, [["a"]]])
def test_log_whose_pointer_leads_elsewhere_is_refused(tmp_path: Path, segments: object) -> None:
    body = {"format": 1, "lineage": "store-0", "segments": segments}
    (tmp_path / "CURRENT").write_text(json.dumps(body))
    with pytest.raises(JournalError, match="restore the store from a snapshot"):
        Journal(str(tmp_path), "store-0")


@pytest.mark.parametrize("shape", [[10**12], [-1], [2, 10**9]])
def test_record_takes_no_more_memory_than_it_holds(
    shape: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from labelmesh.graph_store import journal_frames

    lie = json.dumps({"kind": "put", "fields": {}, "tensors": [["rows", "int64", shape]]})

    with monkeypatch.context() as patch:
        patch.setattr(journal_frames.json, "dumps", lambda *_, **__: lie)
        frame = b"".join(encode(Record("put", {}, {"rows": torch.arange(3)}), 0))
    with pytest.raises(ValueError, match="does not hold that"):
        decode(memoryview(frame), 0, 0)


@pytest.mark.parametrize("kind", ["_setattr__", "distinct", "load", ""])
def test_record_calls_nothing_but_what_records_call(kind: str) -> None:
    with pytest.raises(ValueError, match="which no shard writes"):
        ShardState(SPEC, 6).apply(Record(kind))
