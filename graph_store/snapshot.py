"""Stores on disk: one safetensors file per shard and a manifest, at any fsspec URI. Atomic.

    <uri>/CURRENT                       {"folder": "v000002"}: flipped last
    <uri>/v000002/manifest.json         written when all parts are; their sizes and checksums
    <uri>/v000002/shard-0000.safetensors

Nothing that `CURRENT` names is ever changed, so a snapshot that was cut off leaves the one before
it whole. Rows lie in node order, so they can be read into any number of shards. A column that
several parts share (a round that did not change it) is written once.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .snapshot_manifest import VERSION, Manifest, Part, parse_manifest, parse_pointer, to_json
from .storage import Storage, StorageError, attempt, file_crc32, sync
from .store import StoreSpec
from .table import Columns

POINTER = "CURRENT"
_MANIFEST = "manifest.json"


def new_version(uri: str) -> str:
    """Make a fresh folder under `uri`, after all there are; returns its name.

    Raises:
        StorageError: As all functions here, where the disk or the bucket refuses.
    """
    files = Storage(uri)
    taken = [int(name[1:]) for name in _versions(files)]
    name = f"v{max(taken, default=0) + 1:06d}"
    if files.is_local:  # object stores have no folders to make
        folder = Path(files.path(name))
        attempt(
            lambda: folder.mkdir(parents=True, exist_ok=True), uri=f"{uri}/{name}", doing="writing"
        )
    return name


def write_part(uri: str, version: str, shard: int, contents: Mapping[str, Columns]) -> Part:
    """Write one shard's columns; what could not be written whole is removed again."""
    files = Storage(uri)
    tensors, names = _distinct_tensors(contents)
    file = f"{version}/shard-{shard:04d}.safetensors"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(files.path(file)) if files.is_local else Path(scratch, "part.safetensors")
        place = f"{uri}/{file}" if files.is_local else str(path)
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
        try:
            attempt(
                lambda: _save_to_disk(tensors, path), uri=place, doing="writing", size_bytes=size
            )
        except StorageError:
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise
        if not files.is_local:
            files.put(path, file)
        return Part(Path(file).name, path.stat().st_size, names, file_crc32(path))


def commit(
    uri: str, version: str, spec: StoreSpec, bounds: tuple[int, ...], parts: list[Part]
) -> None:
    """Write the manifest, make this version the current one and delete those before it.

    Raises:
        ValueError: A part is not at `uri` as seen from here; the version before stays current.
    """
    files = Storage(uri)
    for part in parts:
        found = files.size(f"{version}/{part.file}")
        if found != part.size_bytes:
            raise ValueError(
                f"{uri}: {version}/{part.file} has {found} bytes here, its shard wrote "
                f"{part.size_bytes}; use a URI that all nodes share"
            )
    files.write(f"{version}/{_MANIFEST}", to_json(spec, bounds, parts))
    files.write(POINTER, json.dumps({"folder": version}).encode())
    for old in _versions(files):
        if old != version:
            with suppress(StorageError):  # the next commit tries again
                files.remove(old)


def index_files(uri: str) -> list[str]:
    """The files below `uri` that say what is in the others: pointer and manifest."""
    return [POINTER, f"{parse_pointer(Storage(uri).read(POINTER), uri)}/{_MANIFEST}"]


def read_manifest(uri: str) -> Manifest:
    """Raises ValueError where there is no complete snapshot or this version cannot read it."""
    files = Storage(uri)
    try:
        version = parse_pointer(files.read(POINTER), uri)
        content = files.read(f"{version}/{_MANIFEST}")
    except FileNotFoundError:
        raise ValueError(f"{uri}: there is no complete snapshot of a store here") from None
    manifest = parse_manifest(content, version, uri)
    for part in manifest.parts:
        found = files.size(f"{version}/{part.file}")
        if found != part.size_bytes:
            raise ValueError(
                f"{uri}: {version}/{part.file} has {found} bytes, the manifest says "
                f"{part.size_bytes}; the snapshot is damaged"
            )
    return manifest


def check(uri: str, *, deep: bool = True) -> None:
    """Compare a snapshot's files with its manifest.

    Args:
        deep: Read them all; else only sizes are looked at.

    Raises:
        ValueError: There is no snapshot, or it is damaged.
    """
    manifest, files = read_manifest(uri), Storage(uri)
    for part in manifest.parts if deep else ():
        name = f"{manifest.folder}/{part.file}"
        _compare(uri, name, part, files.crc32(name))


def read_rows(uri: str, manifest: Manifest, start: int, stop: int) -> dict[str, dict[str, Tensor]]:
    """The rows of the nodes start..stop-1 of all that `write_part` wrote, as `Shard.contents`.

    Shards need not agree in which columns they shared, nor in whether their graph was up to date;
    what only some of them have is left out.

    Raises:
        ValueError: A part was changed since it was written.
    """
    files = Storage(uri)
    parts: list[Part] = []
    pieces: list[dict[str, Tensor]] = []
    for part, low, high in zip(manifest.parts, manifest.bounds[:-1], manifest.bounds[1:]):
        first, last = max(start, low), min(stop, high)
        if first < last:
            parts.append(part)
            name = f"{manifest.folder}/{part.file}"
            with _local_copy(files, name) as path:
                _compare(uri, name, part, file_crc32(path))
                pieces.append(_read_slices(path, first - low, last - low))
    joined: dict[tuple[str, ...], Tensor] = {}
    rows: dict[str, dict[str, Tensor]] = {}
    for section in set.intersection(*(set(part.names) for part in parts)):
        for column in parts[0].names[section]:
            key = tuple(part.names[section][column] for part in parts)
            if key not in joined:
                joined[key] = torch.cat([piece[name] for piece, name in zip(pieces, key)])
            rows.setdefault(section, {})[column] = joined[key]
    return rows


def _distinct_tensors(
    contents: Mapping[str, Columns],
) -> tuple[dict[str, Tensor], dict[str, dict[str, str]]]:
    """Tensors by the name they get in the file, and the name of every column's tensor."""
    tensors: dict[str, Tensor] = {}
    names: dict[str, dict[str, str]] = {}
    by_memory: dict[int, str] = {}
    for part, columns in contents.items():
        for column, values in columns.items():
            name = by_memory.setdefault(values.data_ptr() or id(values), f"{part}/{column}")
            same = tensors.setdefault(name, values)
            if same.shape != values.shape or same.dtype != values.dtype:
                name = f"{part}/{column}"
                tensors[name] = values.clone()  # another view of the same memory
            names.setdefault(part, {})[column] = name
    return tensors, names


def _save_to_disk(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, path)
    sync(path)
    sync(path.parent)


def _read_slices(path: Path, start: int, stop: int) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_slice(name)[start:stop] for name in file.keys()}  # noqa: SIM118


def _compare(uri: str, name: str, part: Part, crc32: str) -> None:
    if part.crc32 is not None and crc32 != part.crc32:
        raise ValueError(
            f"{uri}: {name} has checksum {crc32}, the manifest says {part.crc32}; the snapshot is "
            "damaged"
        )


def _versions(files: Storage) -> list[str]:
    return [name for name in files.names() if VERSION.fullmatch(name)]


@contextmanager
def _local_copy(files: Storage, name: str) -> Iterator[Path]:
    if files.is_local:
        yield Path(files.path(name))
        return
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch, "part.safetensors")
        files.get(name, copy)
        yield copy
