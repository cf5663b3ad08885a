"""Files at any fsspec URI: a local path, memory://, s3:// and what else fsspec knows.

Credentials and endpoints come from the environment or from fsspec's own configuration
(for example AWS_ENDPOINT_URL for an S3 server other than Amazon's), never from arguments.
"""

from __future__ import annotations

import os
import uuid
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from .limits import check_limit, check_parquet
from .masking import masked_uri

# fsspec knows protocols whose addresses are programs: a "reference" fills in templates that its
# file brings, the others hand the address to a machine or a repository with settings of its own.
_REFUSED = frozenset({"reference", "generic", "dask", "dvc"})


def locate(uri: str) -> tuple[Any, str]:
    """The file system and the path in it.

    Raises:
        ValueError: Unknown protocol, one whose package is not installed, or that is refused.
    """
    for part in str(uri).split("::"):
        if part.partition("://")[0].lower() in _REFUSED:
            raise ValueError(
                f"{masked_uri(uri)}: the protocol {part.partition('://')[0]!r} is not allowed, as "
                "what it reads may give orders; copy the files to a folder or a bucket"
            )
    try:
        fs, path = fsspec.core.url_to_fs(str(uri))
    except ImportError as error:
        raise ValueError(f"{masked_uri(uri)}: {error}; for s3:// install labelmesh[s3]") from None
    return fs, path


def join(uri: str, *parts: str) -> str:
    return "/".join([str(uri).rstrip("/"), *parts])


def is_local(fs: Any) -> bool:
    return isinstance(fs, LocalFileSystem)


def read_bytes(uri: str) -> bytes:
    """Raises FileNotFoundError where there is nothing."""
    fs, path = locate(uri)
    content: bytes = fs.cat_file(path)
    return content


def read_json_bytes(uri: str) -> bytes:
    """Like `read_bytes`, of a file that is no larger than a description should be.

    Raises:
        TooLargeError: It is.
    """
    fs, path = locate(uri)
    check_limit("JSON_BYTES", fs.size(path) or 0, uri)
    return read_bytes(uri)


def write_atomic(uri: str, data: bytes) -> None:
    """Write a whole file: readers see the old content, the whole new one, or none."""
    fs, path = locate(uri)
    if not is_local(fs):
        fs.pipe_file(path, data)  # an object store shows an object only when it is complete
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    part = f"{path}.{uuid.uuid4().hex}.part"
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    finally:
        if os.path.exists(part):
            os.unlink(part)


def is_empty(uri: str) -> bool:
    """True where nothing exists, and for a folder without entries."""
    fs, path = locate(uri)
    if not fs.exists(path):
        return True
    return bool(fs.isdir(path)) and not fs.ls(path, detail=False)


def list_files(uri: str) -> list[str]:
    """Paths of all files below a folder, relative to it, sorted; empty if there is none."""
    return sorted(file_sizes(uri))


def file_sizes(uri: str) -> dict[str, int]:
    """Bytes of every file below a folder, by path relative to it; empty if there is none."""
    fs, path = locate(uri)
    root = path.rstrip("/") + "/"
    # A listing that was cached before somebody else wrote there would be wrong.
    fs.invalidate_cache()
    found = fs.find(path, detail=True)
    return {name.removeprefix(root): entry["size"] for name, entry in found.items()}


def read_columns(uri: str, columns: list[str] | None) -> pa.Table:
    """These columns of a Parquet file (None: all); the bytes of the others are not touched."""
    fs, path = locate(uri)
    with fs.open(path, "rb") as file:
        return parse_columns(file, fs.size(path), columns, uri)


def parse_columns(file: Any, size_bytes: int, columns: list[str] | None, where: str) -> pa.Table:
    """`read_columns` of a file that is open, or of bytes that pyarrow holds.

    Raises:
        TooLargeError: They take far more memory than the file weighs.
    """
    parquet = pq.ParquetFile(file)
    check_parquet(parquet, size_bytes, columns, where)
    return parquet.read(columns=columns)


def write_table(uri: str, table: pa.Table, **options: Any) -> None:
    """Write a Parquet file atomically."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, **options)
    write_atomic(uri, sink.getvalue().to_pybytes())
