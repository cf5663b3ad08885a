"""Records of a log as bytes: framed, checked, without pickle. Pure.

A frame is a prefix (magic, checksum, two lengths), a JSON header and the raw bytes of tensors. The
checksum covers the frame's place in the log as well, so that neither rests of an earlier frame nor
bytes inside a tensor pass for a frame. What a kill in mid-write leaves at the end fails the check
and is dropped: it was never acknowledged.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

MAGIC = b"LMJ1"
_PREFIX = struct.Struct("<4sIIQ")  # magic, checksum, bytes of the header, bytes of the tensors
_CHECKED = struct.Struct("<QIQ")  # place, bytes of the header, bytes of the tensors
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool,
        torch.uint8,
        torch.int8,
        torch.int16,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.float32,
        torch.float64,
    )
}


@dataclass(frozen=True)
class Record:
    """One thing that happened to a shard.

    Attributes:
        kind: What; see `shard_state`.
        fields: JSON values.
    """

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


def encode(record: Record, place: int) -> list[memoryview]:
    """The frame of a record as buffers to write one after the other; tensors are not copied.

    Args:
        place: Where the frame begins in its log, in bytes or in frames; `decode` must know it.
    """
    buffers = [_bytes_of(tensor) for tensor in record.tensors.values()]
    layout = [
        [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
        for name, tensor in record.tensors.items()
    ]
    body = {"kind": record.kind, "fields": record.fields, "tensors": layout}
    header = json.dumps(body, separators=(",", ":")).encode()
    sizes = len(header), sum(buffer.nbytes for buffer in buffers)
    check = _checksum(place, sizes, [memoryview(header), *buffers])
    prefix = _PREFIX.pack(MAGIC, check, *sizes)
    return [memoryview(prefix), memoryview(header), *buffers]


def decode(data: memoryview, at: int, place: int) -> tuple[Record, int] | None:
    """The record of the frame that begins at byte `at`, and where it ends; None if it is not whole.

    The tensors are copies.

    Raises:
        ValueError: A whole frame whose tensors are larger than it is.
    """
    begin = at + _PREFIX.size
    if len(data) < begin:
        return None
    magic, check, *sizes = _PREFIX.unpack_from(data, at)
    middle, end = begin + sizes[0], begin + sizes[0] + sizes[1]
    if magic != MAGIC or len(data) < end:
        return None
    if _checksum(place, (sizes[0], sizes[1]), [data[begin:end]]) != check:
        return None
    body = json.loads(bytes(data[begin:middle]))
    tensors = dict(_tensors(data[middle:end], body["tensors"]))
    return Record(body["kind"], body["fields"], tensors), end


def read_frames(data: memoryview) -> Iterator[tuple[Record, int]]:
    """The records of a log that is one run of bytes, and where each ends; stops at a torn tail.

    Raises:
        ValueError: A whole frame comes after one that is not: the log is damaged, not torn.
    """
    at = 0
    while (found := decode(data, at, at)) is not None:
        yield found
        at = found[1]
    if at < len(data) and _has_frame(data, at + 1):
        raise ValueError(f"bytes after {at:,} are damaged: no record, but records follow")


def _has_frame(data: memoryview, start: int) -> bool:
    rest = bytes(data[start:])
    at = rest.find(MAGIC)
    while at >= 0:
        if decode(data, start + at, start + at) is not None:
            return True
        at = rest.find(MAGIC, at + 1)
    return False


def _checksum(place: int, sizes: tuple[int, int], buffers: Iterable[memoryview]) -> int:
    check = zlib.crc32(_CHECKED.pack(place, *sizes))
    for buffer in buffers:
        check = zlib.crc32(buffer, check)
    return check


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


def _tensors(data: memoryview, layout: Iterable[Any]) -> Iterator[tuple[str, Tensor]]:
    at = 0
    for name, kind, shape in layout:
        dtype = _DTYPES[kind]
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or at + size > len(data):
            raise ValueError(f"a record says that {name} has shape {shape}, and does not hold that")
        tensor = torch.empty(shape, dtype=dtype)
        if size:
            _bytes_of(tensor)[:] = data[at : at + size]
        at += size
        yield name, tensor
