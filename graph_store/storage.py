"""Files at a URI: whole or not at all, and errors that say what to do.

A local file is written beside its place, flushed to the disk and renamed; an object store shows an
object only when it is complete. What may pass (a connection that breaks, a store that asks to slow
down) is tried again a few times, on everything but the local disk.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem

from .places import locate

T = TypeVar("T")

_BLOCK_BYTES = 4 << 20
# Names of exceptions, as none of the clients need be installed. botocore's do not derive from
# OSError.
_NO_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "TokenRetrievalError",
    "DefaultCredentialsError",
    "ClientAuthenticationError",
    "ProfileNotFound",
}
_UNREACHABLE = {
    "ConnectionError",
    "HTTPClientError",
    "FSTimeoutError",
    "TimeoutError",
    "ClientConnectionError",
    "ServiceRequestError",
    "TransportError",
    "gaierror",
}
_CLIENTS = {"botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "azure", "fsspec", "requests"}
_CLIENTS |= {"urllib3", "safetensors", "safetensors_rust"}
_BUSY = ("SlowDown", "ServiceUnavailable", "InternalError", "reduce your request rate")
_FULL = ("No space left", "os error 28", "Disk quota exceeded", "QuotaExceeded")


class StorageError(ValueError):
    """A disk or a bucket refused; the message is one sentence for the user."""


@dataclass(frozen=True)
class Retry:
    """How often something is tried, and how long is waited before the second time; then twice as
    long each time."""

    attempts: int = 3
    wait_s: float = 0.5
    sleep: Callable[[float], None] = time.sleep


ONCE = Retry(attempts=1)
DEFAULT_RETRY = Retry()


def attempt(
    act: Callable[[], T],
    *,
    uri: str,
    doing: str,
    size_bytes: int | None = None,
    retry: Retry = ONCE,
) -> T:
    """What `act` gives; `doing` names it: "writing", "reading", "listing" ...

    Raises:
        StorageError: It failed for good.
        FileNotFoundError: There is nothing to read; passed on, as callers know what that means.
    """
    for number in range(retry.attempts):
        try:
            return act()
        except Exception as error:
            if isinstance(error, StorageError) or not _is_of_storage(error):
                raise
            if isinstance(error, FileNotFoundError) and doing != "writing":
                raise
            if number + 1 == retry.attempts or not is_transient(error):
                raise StorageError(sentence(error, uri, doing, size_bytes)) from error
        retry.sleep(retry.wait_s * 2**number)
    raise AssertionError("unreachable")


def is_transient(error: BaseException) -> bool:
    """Whether trying again may help."""
    if _names(error) & _NO_CREDENTIALS:
        return False
    return bool(_names(error) & _UNREACHABLE) or any(word in str(error) for word in _BUSY)


def is_full(error: BaseException) -> bool:
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(word in str(error) for word in _FULL)


def sentence(error: BaseException, uri: str, doing: str, size_bytes: int | None = None) -> str:
    """What was being done where, what was wrong, what to do."""
    amount = "" if size_bytes is None else f" {size_bytes} bytes"
    text = " ".join(str(getattr(error, "strerror", None) or error).split()).rstrip(".")
    names = _names(error)
    if is_full(error):
        reason = f"the disk is full{_free(uri)}"
        advice = "free some space there, then go on with --resume"
    elif names & _NO_CREDENTIALS or "PermissionError" in names:
        reason = f"it was not allowed ({text})"
        advice = (
            "give this user the right to write there"
            if _is_path(uri)
            else "check the credentials of that storage in the environment (for S3 "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY) and their rights"
        )
    elif names & _UNREACHABLE:
        reason = f"the storage cannot be reached ({text})"
        advice = "check the network and the address of the endpoint, then go on with --resume"
    elif "FileNotFoundError" in names:
        reason, advice = f"there is no such place ({text})", "create the bucket or folder"
    else:
        reason = f"{type(error).__name__}: {text}"
        advice = "mend that, then go on with --resume"
    return f"{uri}: {doing}{amount} failed, {reason}; {advice}"


class Storage:
    """The files below one URI. Picklable.

    Args:
        located: File system and path, where the caller has found them.
        retry: For everything but the local disk.
    """

    def __init__(
        self, uri: str, located: tuple[Any, str] | None = None, retry: Retry = DEFAULT_RETRY
    ) -> None:
        self.uri = uri.rstrip("/")
        self._fs, root = located or locate(self.uri)
        self.root = root.rstrip("/")
        self.is_local = isinstance(self._fs, LocalFileSystem)
        self._retry = ONCE if self.is_local else retry

    def path(self, name: str = "") -> str:
        return f"{self.root}/{name}".rstrip("/")

    def exists(self, name: str = "") -> bool:
        def act() -> bool:
            self._fs.invalidate_cache()  # another process may have written it
            return bool(self._fs.exists(self.path(name)))

        return self._attempt(act, name, "looking for it")

    def size(self, name: str) -> int | None:
        """In bytes; None where there is no such file."""
        try:
            return self._attempt(lambda: self._size(name), name, "looking for it")
        except FileNotFoundError:
            return None

    def names(self, folder: str = "") -> list[str]:
        """Names in a folder, sorted; empty if there is no such folder."""

        def act() -> list[str]:
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self.path(folder), detail=False)
            except (FileNotFoundError, NotADirectoryError):
                return []
            return sorted(str(path).rstrip("/").rsplit("/", 1)[-1] for path in found)

        return self._attempt(act, folder, "listing")

    def find(self, folder: str) -> list[str]:
        """Paths of all files below a folder, relative to it."""

        def act() -> list[str]:
            self._fs.invalidate_cache()
            start = len(self.path(folder))
            return sorted(
                str(path)[start:].lstrip("/") for path in self._fs.find(self.path(folder))
            )

        return self._attempt(act, folder, "listing")

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError where there is nothing."""

        def act() -> bytes:
            content: bytes = self._fs.cat_file(self.path(name))
            return content

        return self._attempt(act, name, "reading")

    def write(self, name: str, data: bytes) -> None:
        """A reader sees the old file or the new one, never half of it."""

        def act() -> None:
            if self.is_local:
                write_whole(Path(self.path(name)), data)
                return
            self._fs.makedirs(self.path(name).rsplit("/", 1)[0], exist_ok=True)
            self._fs.pipe_file(self.path(name), data)

        self._attempt(act, name, "writing", len(data))

    def put(self, source: Path, name: str) -> None:
        """Copy a local file to `name`."""

        def act() -> None:
            self._fs.makedirs(self.path(name).rsplit("/", 1)[0], exist_ok=True)
            self._fs.put_file(str(source), self.path(name))

        self._attempt(act, name, "writing", source.stat().st_size)

    def get(self, name: str, target: Path) -> None:
        """Copy the file `name` to a local one."""
        attempt(
            lambda: target.parent.mkdir(parents=True, exist_ok=True),
            uri=str(target),
            doing="writing",
        )
        self._attempt(
            lambda: self._fs.get_file(self.path(name), str(target)), name, "copying it here"
        )

    def crc32(self, name: str) -> str:
        """Of a file's content; read in blocks."""

        def act() -> str:
            with self._fs.open(self.path(name), "rb") as file:
                return _crc32_of(file)

        return self._attempt(act, name, "reading")

    def remove(self, name: str) -> None:
        """A file or a folder with all in it, if there is one."""
        with suppress(FileNotFoundError):
            self._attempt(lambda: self._fs.rm(self.path(name), recursive=True), name, "removing")

    def _size(self, name: str) -> int | None:
        self._fs.invalidate_cache()
        size: int | None = self._fs.size(self.path(name))
        return size

    def _attempt(
        self, act: Callable[[], T], name: str, doing: str, size_bytes: int | None = None
    ) -> T:
        uri = f"{self.uri}/{name}".rstrip("/")
        return attempt(act, uri=uri, doing=doing, size_bytes=size_bytes, retry=self._retry)


def write_whole(path: Path, data: bytes) -> None:
    """Write a local file at once, and to the disk: it is there after the power was gone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.partial")
    try:
        with open(draft, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a local file, or a folder's list of names, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_crc32(path: Path) -> str:
    with open(path, "rb") as file:
        return _crc32_of(file)


def _crc32_of(file: Any) -> str:
    value = 0
    while block := file.read(_BLOCK_BYTES):
        value = zlib.crc32(block, value)
    return f"{value:08x}"


def _names(error: BaseException) -> set[str]:
    return {kind.__name__ for kind in type(error).__mro__}


def _is_of_storage(error: BaseException) -> bool:
    modules = {kind.__module__.split(".")[0] for kind in type(error).__mro__}
    return isinstance(error, OSError) or bool(modules & _CLIENTS)


def _is_path(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")


def _free(uri: str) -> str:
    """How much room a local disk has left."""
    place = Path(uri.removeprefix("file://"))
    if not _is_path(uri):
        return ""
    while not place.exists() and place != place.parent:
        place = place.parent
    with suppress(OSError):
        return f" ({shutil.disk_usage(place).free} bytes free)"
    return ""
