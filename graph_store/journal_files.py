"""Where the bytes of a log lie: files that are appended to, or one object for each frame.

<folder>/CURRENT                     which segments make the log: replaced as a whole
<folder>/000003-5f3a9c01             a segment on a file system: frames one after the other
<folder>/000003-5f3a9c01/00000017    a frame of a segment in an object store
"""

from __future__ import annotations

import mmap
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from .journal_frames import Record, decode, read_frames
from .places import locate

POINTER = "CURRENT"
SEGMENT = re.compile(r"\d{6}-[0-9a-f]{8}")


class JournalError(RuntimeError):
    """The log of a shard cannot be written or read."""


def open_folder(uri: str) -> LogFolder:
    """The folder of one shard's log, at any fsspec URI."""
    fs, root = locate(uri)
    return LocalFolder(Path(root)) if isinstance(fs, LocalFileSystem) else ObjectFolder(fs, root)


class LogFolder(ABC):
    """A place is where a frame begins: a byte of a file, or a number of an object."""

    @abstractmethod
    def read_pointer(self) -> bytes | None: ...

    @abstractmethod
    def write_pointer(self, data: bytes) -> None:
        """Replace the pointer as a whole; on disk when it returns."""

    @abstractmethod
    def is_current(self) -> bool:
        """Whether the pointer is still the one that was written here."""

    @abstractmethod
    def create(self, segment: str) -> None:
        """Begin a segment of a name that was never used."""

    @abstractmethod
    def append(self, segment: str, place: int, frame: Sequence[memoryview]) -> int:
        """Write a frame at the end; the place after it.

        Raises:
            OSError: It could not be written; a part of it may be there.
        """

    @abstractmethod
    def cut(self, segment: str, place: int) -> None:
        """Drop what begins at or after a place.

        Raises:
            OSError: That failed.
        """

    @abstractmethod
    def sync(self, segment: str) -> None:
        """Make what was appended outlast the machine."""

    @abstractmethod
    def read(self, segment: str, end: int | None) -> Iterator[tuple[Record, int, int]]:
        """Records of a segment, the place after each, and bytes; not beyond place `end`.

        Raises:
            ValueError: A frame is damaged.
        """

    @abstractmethod
    def keep_only(self, segments: Sequence[str]) -> None:
        """Delete all other segments."""


class LocalFolder(LogFolder):
    """A folder of a file system, local or shared by the nodes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._open: dict[str, int] = {}
        self._pointer: tuple[int, int] | None = None

    def read_pointer(self) -> bytes | None:
        try:
            return (self._root / POINTER).read_bytes()
        except FileNotFoundError:
            return None

    def write_pointer(self, data: bytes) -> None:
        draft = self._root / f"{POINTER}.draft"
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(self._root / POINTER)
        self._pointer = self._identity()
        with suppress(OSError):  # the pointer is replaced, whatever becomes of the folder
            self._sync_folder()

    def is_current(self) -> bool:
        return self._identity() == self._pointer

    def create(self, segment: str) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND
        self._open[segment] = os.open(self._root / segment, flags, 0o644)
        self._sync_folder()

    def append(self, segment: str, place: int, frame: Sequence[memoryview]) -> int:
        for buffer in frame:
            write_all(self._open[segment], buffer)
        return place + sum(buffer.nbytes for buffer in frame)

    def cut(self, segment: str, place: int) -> None:
        os.ftruncate(self._open[segment], place)

    def sync(self, segment: str) -> None:
        os.fsync(self._open[segment])

    def read(self, segment: str, end: int | None) -> Iterator[tuple[Record, int, int]]:
        path = self._root / segment
        if not path.stat().st_size:
            return
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        before = 0
        for record, place in read_frames(data if end is None else data[:end]):
            yield record, place, place - before
            before = place

    def keep_only(self, segments: Sequence[str]) -> None:
        for segment in [segment for segment in self._open if segment not in segments]:
            os.close(self._open.pop(segment))
        for path in self._root.iterdir():
            if SEGMENT.fullmatch(path.name) and path.name not in segments:
                path.unlink()

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._root / POINTER)
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns

    def _sync_folder(self) -> None:
        folder = os.open(self._root, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class ObjectFolder(LogFolder):
    """A prefix in an object store; objects are written whole, and outlast the machine at once."""

    def __init__(self, fs: Any, root: str) -> None:
        self._fs, self._root = fs, root
        self._pointer: bytes | None = None

    def read_pointer(self) -> bytes | None:
        self._fs.invalidate_cache()
        try:
            found: bytes = self._fs.cat_file(f"{self._root}/{POINTER}")
        except FileNotFoundError:
            return None
        return found

    def write_pointer(self, data: bytes) -> None:
        self._fs.pipe_file(f"{self._root}/{POINTER}", data)
        self._pointer = data

    def is_current(self) -> bool:
        return self.read_pointer() == self._pointer

    def create(self, segment: str) -> None:
        """Nothing to do: there are no folders to make."""

    def append(self, segment: str, place: int, frame: Sequence[memoryview]) -> int:
        self._fs.pipe_file(f"{self._root}/{segment}/{place:08d}", b"".join(frame))
        return place + 1

    def cut(self, segment: str, place: int) -> None:
        path = f"{self._root}/{segment}/{place:08d}"
        if self._fs.exists(path):
            self._fs.rm_file(path)

    def sync(self, segment: str) -> None:
        """Nothing to do."""

    def read(self, segment: str, end: int | None) -> Iterator[tuple[Record, int, int]]:
        self._fs.invalidate_cache()
        place = 0
        while end is None or place < end:
            try:
                data = self._fs.cat_file(f"{self._root}/{segment}/{place:08d}")
            except FileNotFoundError:
                return
            found = decode(memoryview(data), 0, place)
            if found is None:
                raise ValueError(f"object {place:08d} is damaged")
            place += 1
            yield found[0], place, len(data)

    def keep_only(self, segments: Sequence[str]) -> None:
        self._fs.invalidate_cache()
        for path in self._fs.ls(self._root, detail=False):
            name = path.rstrip("/").rsplit("/", 1)[-1]
            if SEGMENT.fullmatch(name) and name not in segments:
                self._fs.rm(path, recursive=True)


def write_all(file: int, buffer: memoryview) -> None:
    """All of a buffer to a file; one call may write a part of it."""
    at = 0
    while at < buffer.nbytes:
        at += os.write(file, buffer[at:])
