"""Files at a URI on a full disk, on an endpoint that nobody answers, on one that comes back."""

from __future__ import annotations

import os
import pickle
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from labelmesh.graph_store.snapshot import commit, new_version, read_manifest, read_rows, write_part
from labelmesh.graph_store.storage import (
    Retry,
    Storage,
    StorageError,
    file_crc32,
    sentence,
    write_whole,
)
from labelmesh.graph_store.store import StoreSpec

SPEC = StoreSpec(num_nodes=1000, dim=4, num_classes=3, k=1)


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """Within it no file of this process grows beyond that: as near to a full disk as any user may
    go. Python ignores the signal that goes with it."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


class Flaky(MemoryFileSystem):
    """Refuses so many times what it is told to."""

    cachable = False
    error: Exception = ConnectionResetError("connection reset by peer")
    left = 0

    def pipe_file(self, path: str, value: bytes, **options: Any) -> None:
        if self.left:
            self.left -= 1
            raise self.error
        super().pipe_file(path, value, **options)


def flaky(times: int, waits: list[float], error: Exception | None = None) -> Storage:
    fs = Flaky()
    fs.left, fs.error = times, error or Flaky.error
    return Storage(
        "memory://flaky", (fs, "/flaky"), Retry(attempts=3, wait_s=0.5, sleep=waits.append)
    )


def test_what_breaks_for_a_moment_is_tried_again() -> None:
    waits: list[float] = []
    flaky(2, waits).write("a/b", b"x")
    assert waits == [0.5, 1.0]
    assert Storage("memory://flaky").read("a/b") == b"x"


def test_tries_are_bounded_and_the_error_says_what_to_do() -> None:
    waits: list[float] = []
    with pytest.raises(StorageError) as caught:
        flaky(9, waits).write("a/b", b"abc")
    assert str(caught.value) == (
        "memory://flaky/a/b: writing 3 bytes failed, the storage cannot be reached (connection "
        "reset by peer); check the network and the address of the endpoint, then go on with "
        "--resume"
    )
    assert len(waits) == 2


def test_what_cannot_pass_is_not_tried_again() -> None:
    waits: list[float] = []
    with pytest.raises(StorageError, match=r"it was not allowed.*AWS_ACCESS_KEY_ID"):
        flaky(9, waits, PermissionError("Forbidden")).write("a/b", b"")
    with pytest.raises(TypeError, match="of ours"):
        flaky(9, waits, TypeError("a mistake of ours")).write("a/b", b"")
    assert waits == []


def test_a_store_that_asks_to_slow_down_is_obeyed() -> None:
    waits: list[float] = []
    flaky(1, waits, OSError("SlowDown: please reduce your request rate")).write("c", b"")
    assert waits == [0.5]


def test_files_that_do_not_fit_leave_the_old_ones(tmp_path: Path) -> None:
    place = Storage(str(tmp_path))
    place.write("deep/file", b"old")
    with (
        largest_file(100),
        pytest.raises(StorageError, match=r"deep/file: writing 500 bytes failed"),
    ):
        place.write("deep/file", bytes(500))
    assert place.read("deep/file") == b"old"
    assert place.names("deep") == ["file"]


def test_a_device_that_is_full() -> None:
    file = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space left") as caught:
            os.write(file, b"x")
    finally:
        os.close(file)
    text = sentence(caught.value, "/dev/full", "writing", 1)
    assert text.startswith("/dev/full: writing 1 bytes failed, the disk is full (")
    assert text.endswith("bytes free); free some space there, then go on with --resume")


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
        waits: list[float] = []
        place = Storage("s3://bucket/run", retry=Retry(attempts=2, sleep=waits.append))
        place._fs = type(place._fs)(skip_instance_cache=True)
        with pytest.raises(
            StorageError, match=r"^s3://bucket/run/x: looking for it failed, the st"
        ):
            place.exists("x")
        with pytest.raises(StorageError, match=r"writing 3 bytes failed.*Could not connect"):
            place.write("x", b"abc")
        assert len(waits) == 2


def test_a_place_can_be_sent_to_another_process(tmp_path: Path) -> None:
    place = pickle.loads(pickle.dumps(Storage(str(tmp_path))))
    place.write("a", b"1")
    assert place.crc32("a") == file_crc32(tmp_path / "a") == "83dcefb7"
    assert place.size("b") is None
    with pytest.raises(FileNotFoundError):
        place.read("b")
    write_whole(tmp_path / "c", b"2")
    assert place.names() == ["a", "c"]


def snapshot(uri: str, value: int) -> None:
    version = new_version(uri)
    rows = {"table": {"x": torch.full((1000, 4), value)}}
    commit(uri, version, SPEC, (0, 1000), [write_part(uri, version, 0, rows)])


def test_a_snapshot_that_does_not_fit_leaves_the_one_before(tmp_path: Path) -> None:
    uri = str(tmp_path / "store")
    snapshot(uri, 1)
    with (
        largest_file(20_000),
        pytest.raises(StorageError, match=r"v000002/shard-0000.*32000 bytes failed"),
    ):
        snapshot(uri, 2)
    assert not list(Path(uri).glob("v000002/*"))
    assert int(read_rows(uri, read_manifest(uri), 0, 1)["table"]["x"][0, 0]) == 1
    snapshot(uri, 4)
    assert Storage(uri).names() == ["CURRENT", "v000003"]


def test_changed_rows_are_refused(tmp_path: Path) -> None:
    uri = str(tmp_path)
    snapshot(uri, 1)
    part = tmp_path / "v000001" / "shard-0000.safetensors"
    content = bytearray(part.read_bytes())
    content[-1] ^= 1
    part.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-0000.safetensors has checksum \w+, the manifest"):
        read_rows(uri, read_manifest(uri), 0, 1000)
