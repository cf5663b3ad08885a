"""CIFAR's archives are pickles in tar files: neither may do anything but hold images."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.datasets.importers import cifar

_RAN: list[str] = []


def _note(text: str) -> None:
    _RAN.append(text)


class _Calls:
    """Pickled as a call of any function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize(
    "function", [_note, eval, exec, getattr, __import__, np.load, np.frombuffer, np.vectorize]
)
@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_pickle_gets_no_function(function: Any, protocol: int) -> None:
    content = pickle.dumps({b"data": _Calls(function, "print")}, protocol)
    with pytest.raises(ValueError, match=r"cannot be read .*it asks for"):
        cifar._unpickle(content, "a.tar: data_batch_1")
    assert _RAN == []


@pytest.mark.parametrize(
    "value", [np.zeros(2, object), np.zeros(2), np.zeros(2, "i4,O"), np.dtype("O")]
)
def test_pickle_gets_no_arrays_but_of_bytes(value: Any) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        cifar._unpickle(pickle.dumps({b"data": value}, 2), "a.tar: data_batch_1")


def test_array_that_says_more_than_it_holds_is_refused() -> None:
    content = pickle.dumps({b"data": np.zeros((2, 3), np.uint8)}, 2)
    assert content.count(b"K\x02K\x03\x86") == 1
    large = content.replace(b"K\x02K\x03\x86", b"J\xff\xff\xff\x7fK\x03\x86")
    with pytest.raises(ValueError, match=r"cannot be read .*reshape"):
        cifar._unpickle(large, "a.tar: data_batch_1")


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_damaged_pickle_gives_plain_values_or_an_error(data: st.DataObject) -> None:
    body = {b"data": np.arange(12, dtype=np.uint8).reshape(4, 3), b"labels": [0, 1, 0, 1]}
    content = bytearray(pickle.dumps(body, data.draw(st.sampled_from([0, 2]))))
    place = data.draw(st.integers(0, len(content) - 1))
    junk = data.draw(st.binary(min_size=1, max_size=3))
    content[place : place + len(junk)] = junk
    try:
        found = cifar._unpickle(bytes(content), "x")
    except ValueError:
        return
    assert isinstance(found, dict)


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("../data_batch_1", tarfile.REGTYPE, "has a part '..'"),
        ("/data_batch_1", tarfile.REGTYPE, "is an absolute path"),
        ("data_batch_1", tarfile.SYMTYPE, "is a symbolic link"),
        ("data_batch_1", tarfile.LNKTYPE, "is a hard link"),
        ("data_batch_1", tarfile.BLKTYPE, "is a device"),
    ],
)
def test_archive_with_links_or_paths_to_elsewhere_is_refused(
    tmp_path: Path, name: str, kind: bytes, message: str
) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, "/etc/passwd"
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(member)
    with pytest.raises(ValueError, match=f"a.tar.gz: .*{message}"):
        cifar.import_samples(str(tmp_path / "a.tar.gz"), str(tmp_path / "out"))


def test_archive_that_unpacks_to_far_more_than_it_weighs_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABELMESH_MAX_UNPACKED_BYTES", "100000")
    member = tarfile.TarInfo("data_batch_1")
    member.size = 10**6
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(member, io.BytesIO(bytes(10**6)))
    with pytest.raises(ValueError, match=r"a.tar.gz has 1,000,000 bytes unpacked, more than the"):
        cifar.import_samples(str(tmp_path / "a.tar.gz"), str(tmp_path / "out"))
