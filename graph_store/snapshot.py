"""Stores on disk: one safetensors file per shard and a manifest, at any fsspec URI. Atomic.

    <uri>/CURRENT                       {"folder": "v000002"}: flipped last
    <uri>/v000002/manifest.json         written when all parts are
    <uri>/v000002/shard-0000.safetensors

Nothing that `CURRENT` names is ever changed, so a snapshot that was cut off leaves the one before
it whole. Rows lie in node order, so they can be read into any number of shards. A column that
several parts share (a round that did not change it) is written once.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import fsspec
import torch
from fsspec.implementations.local import LocalFileSystem
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .store import StoreSpec
from .table import Columns

FORMAT = 1
_POINTER = "CURRENT"


@dataclass(frozen=True)
class Part:
    """One shard's file. `names`: part of the store -> column -> tensor in the file."""

    file: str
    size_bytes: int
    names: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Manifest:
    """What a snapshot holds. `folder` is the full path of the version that was read."""

    folder: str
    spec: StoreSpec
    bounds: tuple[int, ...]
    parts: tuple[Part, ...]


def new_version(uri: str) -> str:
    """Make a fresh folder under `uri`, after all there are; returns its name."""
    fs, root = _open(uri)
    taken = [int(name[1:]) for name in _versions(fs, root)]
    name = f"v{max(taken, default=0) + 1:06d}"
    if isinstance(fs, LocalFileSystem):  # object stores have no folders to make
        fs.makedirs(f"{root}/{name}", exist_ok=True)
    return name


def write_part(uri: str, version: str, shard: int, contents: Mapping[str, Columns]) -> Part:
    """Write one shard's columns."""
    fs, root = _open(uri)
    tensors, names = _distinct_tensors(contents)
    file = f"shard-{shard:04d}.safetensors"
    with tempfile.TemporaryDirectory() as scratch:
        local = isinstance(fs, LocalFileSystem)
        path = Path(root, version, file) if local else Path(scratch, file)
        save_file(tensors, path)
        if not local:
            fs.put_file(str(path), f"{root}/{version}/{file}")
        return Part(file, path.stat().st_size, names)


def commit(
    uri: str, version: str, spec: StoreSpec, bounds: tuple[int, ...], parts: list[Part]
) -> None:
    """Write the manifest, make this version the current one and delete those before it.

    Raises:
        ValueError: A part is not at `uri` as seen from here; the version before stays current.
    """
    fs, root = _open(uri)
    for part in parts:
        found = _size(fs, f"{root}/{version}/{part.file}")
        if found != part.size_bytes:
            raise ValueError(
                f"{uri}: {version}/{part.file} has {found} bytes here, its shard wrote "
                f"{part.size_bytes}; use a URI that all nodes share"
            )
    body = {
        "format": FORMAT,
        "spec": asdict(spec),
        "bounds": bounds,
        "parts": [asdict(part) for part in parts],
    }
    fs.pipe_file(f"{root}/{version}/manifest.json", json.dumps(body, indent=1).encode())
    # Renaming replaces a local file at once; object stores write a whole object at once.
    draft = f"{root}/{_POINTER}.draft" if isinstance(fs, LocalFileSystem) else f"{root}/{_POINTER}"
    fs.pipe_file(draft, json.dumps({"folder": version}).encode())
    if isinstance(fs, LocalFileSystem):
        Path(draft).replace(f"{root}/{_POINTER}")
    for old in _versions(fs, root):
        if old != version:
            fs.rm(f"{root}/{old}", recursive=True)


def read_manifest(uri: str) -> Manifest:
    """Raises ValueError where there is no complete snapshot or this version cannot read it."""
    fs, root = _open(uri)
    try:
        version = json.loads(fs.cat_file(f"{root}/{_POINTER}"))["folder"]
        body = json.loads(fs.cat_file(f"{root}/{version}/manifest.json"))
    except FileNotFoundError:
        raise ValueError(f"{uri}: there is no complete snapshot of a store here") from None
    if body["format"] != FORMAT:
        raise ValueError(
            f"{uri}: the snapshot has format {body['format']}, this version reads {FORMAT}"
        )
    parts = tuple(Part(**part) for part in body["parts"])
    for part in parts:
        found = _size(fs, f"{root}/{version}/{part.file}")
        if found != part.size_bytes:
            raise ValueError(
                f"{uri}: {version}/{part.file} has {found} bytes, the manifest says "
                f"{part.size_bytes}; the snapshot is damaged"
            )
    return Manifest(f"{root}/{version}", StoreSpec(**body["spec"]), tuple(body["bounds"]), parts)


def read_rows(uri: str, manifest: Manifest, start: int, stop: int) -> dict[str, dict[str, Tensor]]:
    """The rows of the nodes start..stop-1 of all that `write_part` wrote, as `Shard.contents`.

    Shards need not agree in which columns they shared, nor in whether their graph was up to date;
    what only some of them have is left out.
    """
    fs, _ = _open(uri)
    parts: list[Part] = []
    pieces: list[dict[str, Tensor]] = []
    for part, low, high in zip(manifest.parts, manifest.bounds[:-1], manifest.bounds[1:]):
        first, last = max(start, low), min(stop, high)
        if first < last:
            parts.append(part)
            with _local_copy(fs, f"{manifest.folder}/{part.file}") as path:
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


def _read_slices(path: str, start: int, stop: int) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_slice(name)[start:stop] for name in file.keys()}  # noqa: SIM118


def _open(uri: str) -> tuple[Any, str]:
    fs, root = fsspec.core.url_to_fs(uri)
    return fs, root.rstrip("/")


def _size(fs: Any, path: str) -> int | None:
    fs.invalidate_cache()  # another process may have written it
    size: int | None = fs.size(path) if fs.exists(path) else None
    return size


def _versions(fs: Any, root: str) -> list[str]:
    if not fs.exists(root):
        return []
    fs.invalidate_cache()
    found = [path.rstrip("/").rsplit("/", 1)[-1] for path in fs.ls(root, detail=False)]
    return [name for name in found if name[:1] == "v" and name[1:].isdigit()]


@contextmanager
def _local_copy(fs: Any, path: str) -> Iterator[str]:
    if isinstance(fs, LocalFileSystem):
        yield path
        return
    with tempfile.TemporaryDirectory() as scratch:
        copy = str(Path(scratch, "part.safetensors"))
        fs.get_file(path, copy)
        yield copy
