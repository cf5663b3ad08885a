"""Helpers of the importers: where a source's files are, and what to call it."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Sequence

from .files import join, list_files, locate, read_bytes
from .limits import check_unpacked

_UNPACKED_AT_ONCE = 16 << 20


def require_source(source: str | None, expected: str) -> str:
    """Raises ValueError, saying what was expected, if there is no source."""
    if not source:
        raise ValueError(f"this format needs a source: {expected}")
    fs, path = locate(source)
    if not fs.exists(path):
        raise ValueError(f"{source}: does not exist; expected {expected}")
    return str(source)


def name_of(source: str, name: str | None) -> str:
    """The name given, or the last part of the source."""
    return name or source.rstrip("/").rsplit("/", 1)[-1].split(".")[0]


def find_one(source: str, candidates: Sequence[str]) -> str:
    """URI of the first of these files that lies in the folder.

    Raises:
        ValueError: None does.
    """
    present = set(list_files(source))
    for candidate in candidates:
        if candidate in present:
            return join(source, candidate)
    raise ValueError(f"{source}: has none of {', '.join(candidates)}")


def read_maybe_gzip(uri: str) -> bytes:
    """Content of a file, unpacked if it is gzip.

    Raises:
        ValueError: Broken, or it unpacks to far more than it weighs.
    """
    content = read_bytes(uri)
    if content[:2] != b"\x1f\x8b":
        return content
    parts: list[bytes] = []
    size = 0
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            while part := file.read(_UNPACKED_AT_ONCE):
                parts.append(part)
                size += len(part)
                check_unpacked(size, len(content), uri)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{uri}: broken gzip file ({error})") from None
    return b"".join(parts)


def class_names(classes: str | Sequence[str] | None, num_classes: int) -> tuple[str, ...]:
    """Class names as given (a sequence or a comma-separated string), or "0", "1", ...

    Raises:
        ValueError: Fewer names than classes.
    """
    if classes is None:
        return tuple(str(i) for i in range(num_classes))
    names = tuple(n.strip() for n in classes.split(",")) if isinstance(classes, str) else classes
    if len(names) < num_classes:
        raise ValueError(f"classes = {list(names)}: {len(names)} names for {num_classes} classes")
    return tuple(names)
