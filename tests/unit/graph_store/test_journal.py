"""A log gives back what was acknowledged, wherever the process was cut off."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.graph_store import journal as journal_module
from labelmesh.graph_store import journal_files
from labelmesh.graph_store.journal import Journal
from labelmesh.graph_store.journal_files import JournalError, LocalFolder
from labelmesh.graph_store.journal_frames import Record, decode, encode, read_frames
from torch import Tensor

DTYPES = (torch.bool, torch.uint8, torch.int64, torch.float16, torch.float32, torch.float64)


def tensor(seed: int, rows: int, dtype: torch.dtype) -> Tensor:
    values = torch.randn(rows, 2, generator=torch.Generator().manual_seed(seed))
    return (values * 3).to(dtype)


@st.composite
def record(draw: Any) -> Record:
    names = draw(st.lists(st.sampled_from("abc"), unique=True, max_size=2))
    tensors = {
        name: tensor(
            draw(st.integers(0, 9)), draw(st.integers(0, 3)), draw(st.sampled_from(DTYPES))
        )
        for name in names
    }
    fields = draw(st.dictionaries(st.text(max_size=3), st.integers(-5, 5), max_size=2))
    fields.pop("version", None)
    return Record(draw(st.sampled_from(["put", "staged"])), fields, tensors)


def same(one: Record, other: Record) -> bool:
    return (
        (one.kind, one.fields) == (other.kind, other.fields)
        and one.tensors.keys() == other.tensors.keys()
        and all(
            torch.equal(one.tensors[n], other.tensors[n])
            and one.tensors[n].dtype == other.tensors[n].dtype
            for n in one.tensors
        )
    )


def log_of(records: list[Record]) -> tuple[bytes, list[int]]:
    data, ends = b"", [0]
    for each in records:
        data += b"".join(encode(each, len(data)))
        ends.append(len(data))
    return data, ends


@given(st.lists(record(), max_size=4), st.data())
@settings(max_examples=60, deadline=None)
def test_any_prefix_of_a_log_gives_the_records_that_are_whole(
    records: list[Record], data: Any
) -> None:
    log, ends = log_of(records)
    cut = data.draw(st.integers(0, len(log)))
    found = [each for each, _ in read_frames(memoryview(log[:cut]))]
    assert len(found) == sum(end <= cut for end in ends[1:])
    assert all(same(one, other) for one, other in zip(found, records))


@given(st.lists(record(), min_size=2, max_size=4), st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_byte_is_never_read_as_something_else(records: list[Record], data: Any) -> None:
    log, ends = log_of(records)
    at = data.draw(st.integers(0, len(log) - 1))
    broken = bytearray(log)
    broken[at] ^= data.draw(st.integers(1, 255))
    hit = sum(end <= at for end in ends[1:])  # the record that has the byte
    found: list[Record] = []

    def read() -> None:
        found.extend(each for each, _ in read_frames(memoryview(bytes(broken))))

    if hit == len(records) - 1:
        read()  # as a torn tail
    else:
        with pytest.raises(ValueError, match="are damaged"):
            read()
    assert len(found) == hit


def test_a_frame_is_valid_at_its_own_place_only() -> None:
    inner = b"".join(encode(Record("put", {}, {}), 7))
    hidden = Record("put", {}, {"a": torch.frombuffer(bytearray(inner), dtype=torch.uint8)})
    frame = b"".join(encode(hidden, 0))
    assert list(read_frames(memoryview(frame[:-1]))) == []
    assert decode(memoryview(inner), 0, 0) is None
    assert decode(memoryview(inner), 0, 7) is not None


def numbered(number: int, size: int = 4) -> Record:
    return Record("put", {"number": number}, {"rows": torch.full((size,), number)})


def numbers(journal: Journal) -> list[int]:
    found: list[int] = []
    for each in journal.replay():
        found = (
            list(each.fields["all"]) if each.kind == "whole" else [*found, each.fields["number"]]
        )
    return found


def whole(known: list[int]) -> Record:
    return Record("whole", {"all": list(known)}, {})


def opened(uri: str) -> tuple[Journal, list[int]]:
    journal = Journal(uri, "store-1")
    found = numbers(journal)
    journal.begin()
    return journal, found


@pytest.fixture(params=["file", "memory"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    if request.param == "file":
        yield str(tmp_path / "shard")
        return
    import fsspec

    root = f"memory://{tmp_path.name}"
    yield f"{root}/shard"
    fsspec.filesystem("memory").rm(f"/{tmp_path.name}", recursive=True)


def test_a_log_is_read_again_after_any_number_of_deaths(uri: str) -> None:
    known: list[int] = []
    for life in range(4):
        journal, found = opened(uri)
        assert found == known
        assert journal.version == len(known)
        for number in range(life * 10, life * 10 + 3):
            journal.append(numbered(number), sync=number % 2 == 0)
            known.append(number)
        if life == 1:
            journal.restart(whole(known))
            assert journal.version == len(known) + 1
            journal.append(numbered(99))
            known.append(99)
            break
    again, found = opened(uri)
    assert found == known
    assert again.version == len(known) + 1


def test_who_was_given_up_can_neither_write_nor_replace_the_log(uri: str) -> None:
    old, _ = opened(uri)
    old.append(numbered(0))
    new, found = opened(uri)
    assert found == [0]
    for attempt in (
        lambda: old.append(numbered(1)),
        lambda: old.restart(whole([])),
        old.sync,
    ):
        with pytest.raises(JournalError, match="another process has taken over"):
            attempt()
    new.append(numbered(2))
    assert numbers(Journal(uri, "store-1")) == [0, 2]


def test_what_a_given_up_process_writes_unnoticed_is_not_read(
    uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _ = opened(uri)
    old.append(numbered(0))
    new, _ = opened(uri)
    new.append(numbered(1))
    with monkeypatch.context() as patch:  # it looked just before it was given up
        patch.setattr(old._folder, "is_current", lambda: True)
        old.append(numbered(2))
    assert numbers(Journal(uri, "store-1")) == [0, 1]


def test_logs_of_other_stores_and_formats_are_refused(uri: str) -> None:
    journal, _ = opened(uri)
    with pytest.raises(JournalError, match="this is the log of store-1, not of store-2"):
        Journal(uri, "store-2")
    journal._folder.write_pointer(b'{"format": 9}')
    with pytest.raises(JournalError, match="has format 9, this version reads 1"):
        Journal(uri, "store-1")
    journal._folder.write_pointer(b"{")
    with pytest.raises(JournalError, match="restore the store from a snapshot"):
        Journal(uri, "store-1")


def test_damage_and_missing_parts_are_errors(tmp_path: Path) -> None:
    uri = str(tmp_path)
    journal, _ = opened(uri)
    for number in range(3):
        journal.append(numbered(number))
    (segment,) = tmp_path.glob("0*")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(bytes(data))
    with pytest.raises(JournalError, match=r"bytes after [\d,]+ are damaged.*restore the store"):
        numbers(Journal(uri, "store-1"))
    segment.write_bytes(bytes(data[: len(data) // 2]))  # now it looks torn, and a segment follows
    opened(uri)
    segment.write_bytes(b"")
    with pytest.raises(JournalError, match="ends at 0 instead of"):
        numbers(Journal(uri, "store-1"))


@pytest.mark.parametrize("where", ["write_all", "fsync"])
def test_a_full_disk_is_an_error_and_the_log_goes_on_when_there_is_room(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal, _ = opened(str(tmp_path))
    journal.append(numbered(0))

    def full(file: int, buffer: Any = b"") -> None:
        if len(buffer):
            os.write(file, buffer[: len(buffer) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal_files if where == "write_all" else os, where, full)
        with pytest.raises(
            JournalError, match=r"a record of [\d,]+ bytes could not be written .*No s"
        ):
            journal.append(numbered(1, 100_000), sync=True)
    assert journal.version == 1
    journal.append(numbered(2))
    assert numbers(Journal(str(tmp_path), "store-1")) == [0, 2]


@pytest.mark.parametrize("step", range(7))
@pytest.mark.parametrize("dies", [False, True])
def test_compaction_may_stop_at_any_step(
    step: int, dies: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """File operations fail one after the other, as with a full disk, or the process ends there."""
    journal, _ = opened(str(tmp_path))
    for number in range(3):
        journal.append(numbered(number))
    count = 0

    def stopping(real: Any) -> Any:
        def run(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count - 1 == step or (dies and count - 1 > step):
                raise SystemExit if dies else OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **options)

        return run

    with monkeypatch.context() as patch:
        for name in ("create", "append", "sync", "write_pointer", "keep_only"):
            patch.setattr(LocalFolder, name, stopping(getattr(LocalFolder, name)))
        patch.setattr(Path, "replace", stopping(Path.replace))
        patch.setattr(LocalFolder, "_sync_folder", stopping(LocalFolder._sync_folder))
        with suppress(SystemExit, JournalError):
            journal.restart(whole([0, 1, 2]))
    known = [0, 1, 2]
    if not dies:
        journal.append(numbered(3))
        known.append(3)
    again, found = opened(str(tmp_path))
    assert found == known
    again.append(numbered(4))
    assert opened(str(tmp_path))[1] == [*known, 4]
    assert len(list(tmp_path.glob("0*"))) <= 4


def test_a_log_is_shortened_when_it_is_past_the_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "SMALLEST", 1000)
    journal, _ = opened(str(tmp_path))
    state = Record("whole", {"all": []}, {"a": torch.zeros(1000)})
    sizes = []
    for number in range(60):
        journal.append(numbered(number, 100))
        journal.compact(lambda: state)
        sizes.append(journal.num_bytes)
    assert max(sizes) < 3.3 * 4000
    assert min(sizes[15:]) < 1.5 * 4000  # it was written anew
    with monkeypatch.context() as patch:
        patch.setattr(journal, "restart", failing)
        for number in range(60):
            journal.append(numbered(number, 100))
            journal.compact(lambda: state)
    assert journal.num_bytes > 3.5 * 4000


def failing(_: Record) -> None:
    raise JournalError("no room")
