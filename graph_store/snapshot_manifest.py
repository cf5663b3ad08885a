"""What a snapshot says of itself, checked before anything is read or memory is taken. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, get_args, get_type_hints

from .places import check_name
from .store import StoreSpec

FORMAT = 1
VERSION = re.compile(r"v\d{6,}")
_PART = re.compile(r"shard-\d{4,}\.safetensors")


@dataclass(frozen=True)
class Part:
    """One shard's file.

    Attributes:
        names: Part of the store -> column -> tensor in the file.
        crc32: None in snapshots that an earlier version wrote.
    """

    file: str
    size_bytes: int
    names: Mapping[str, Mapping[str, str]]
    crc32: str | None = None


@dataclass(frozen=True)
class Manifest:
    """What a snapshot holds. `folder` is the name of the version that was read."""

    folder: str
    spec: StoreSpec
    bounds: tuple[int, ...]
    parts: tuple[Part, ...]


def to_json(spec: StoreSpec, bounds: tuple[int, ...], parts: list[Part]) -> bytes:
    body = {
        "format": FORMAT,
        "spec": asdict(spec),
        "bounds": bounds,
        "parts": [asdict(part) for part in parts],
    }
    return json.dumps(body, indent=1).encode()


def parse_pointer(content: bytes, uri: str) -> str:
    """The folder that a snapshot's pointer names.

    Raises:
        ValueError: It names none, or one that labelmesh does not make.
    """
    body = _object(content, uri)
    return check_name(body.get("folder"), VERSION, f"{uri}: the pointer")


def parse_manifest(content: bytes, folder: str, uri: str) -> Manifest:
    """The manifest of the version `folder`.

    Raises:
        ValueError: It is damaged, of another format, names files elsewhere, or says more than its
            files can hold.
    """
    body = _object(content, uri)
    if body.get("format") != FORMAT:
        raise ValueError(
            f"{uri}: the snapshot has format {body.get('format')}, this version reads {FORMAT}"
        )
    try:
        spec = _spec(body["spec"], uri)
        bounds = tuple(body["bounds"])
        parts = tuple(_part(raw, uri) for raw in body["parts"])
    except KeyError as error:
        raise _damaged(uri, f"has no {error}") from None
    except TypeError as error:
        raise _damaged(uri, f"has another form ({error})") from None
    if len({part.file for part in parts}) < len(parts):
        raise _damaged(uri, "names one file twice")
    _check_bounds(bounds, spec, parts, uri)
    return Manifest(folder, spec, bounds, parts)


def _spec(raw: dict[str, Any], uri: str) -> StoreSpec:
    for name in ("num_nodes", "dim", "num_classes", "k"):
        if type(raw[name]) is not int or raw[name] < 1:
            raise _damaged(uri, f"has {name} = {raw[name]!r}")
    kinds = get_type_hints(StoreSpec)
    for name in ("metric", "dtype", "backend", "update"):
        if name in raw and raw[name] not in get_args(kinds[name]):
            raise _damaged(uri, f"has {name} = {raw[name]!r}")
    return StoreSpec(**raw)


def _part(raw: dict[str, Any], uri: str) -> Part:
    file = check_name(raw["file"], _PART, f"{uri}: the manifest")
    if type(raw["size_bytes"]) is not int or not isinstance(raw["names"], dict):
        raise _damaged(uri, f"says nothing of use about {file}")
    return Part(**raw)


def _check_bounds(
    bounds: tuple[Any, ...], spec: StoreSpec, parts: tuple[Part, ...], uri: str
) -> None:
    """Ranges of nodes that follow on each other, in files that are large enough for them."""
    whole = bounds[:1] == (0,) and bounds[-1:] == (spec.num_nodes,)
    if (
        not whole
        or len(bounds) != len(parts) + 1
        or any(type(bound) is not int for bound in bounds)
        or any(low >= high for low, high in pairwise(bounds))
    ):
        raise _damaged(uri, f"divides {spec.num_nodes} nodes at {list(bounds)[:8]}")
    # Features and probabilities of every node are in the files, whatever else is.
    per_node = spec.dim * (2 if spec.dtype == "float16" else 4) + 4 * spec.num_classes
    size = sum(part.size_bytes for part in parts)
    if spec.num_nodes * per_node > size:
        raise _damaged(
            uri, f"says {spec.num_nodes:,} nodes of {per_node} bytes, its files have {size:,} bytes"
        )


def _object(content: bytes, uri: str) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except ValueError:  # no JSON, or no text
        body = None
    if not isinstance(body, dict):
        raise ValueError(
            f"{uri}: pointer or manifest is no JSON object; the snapshot is damaged"
        ) from None
    return body


def _damaged(uri: str, what: str) -> ValueError:
    return ValueError(f"{uri}: the manifest {what}; the snapshot is damaged")
