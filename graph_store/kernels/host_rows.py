"""Rows that do not fit into the device's memory: copied block by block, one ahead of their use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from . import offers
from .list_types import Framed

# A block in use on either side, and one that is being copied.
_BLOCKS = 3


def place(framed: Framed, budget: int | None) -> Framed:
    """The same rows on the device of their half lengths, if they are not more than `budget` bytes.

    Args:
        budget: None: rows on the device stay there; others may take half of its free memory.
    """
    device, size = framed.half.device, framed.rows.numel() * framed.rows.element_size()
    if size > _room(framed, budget) or framed.rows.device == device:
        return framed
    return replace(framed, rows=framed.rows.to(device))


def parts(framed: Framed, budget: int | None) -> list[slice]:
    """Ranges of rows that are used at once: blocks, or what `budget` has room for."""
    num_rows, row_bytes = framed.rows.shape[0], framed.rows.shape[1] * framed.rows.element_size()
    size = offers.BLOCK
    if is_streamed(framed, budget):
        size = max(1, _room(framed, budget) // (_BLOCKS * max(1, row_bytes)))
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def is_streamed(framed: Framed, budget: int | None) -> bool:
    """Whether rows must be copied block by block."""
    size = framed.rows.numel() * framed.rows.element_size()
    return framed.rows.device != framed.half.device or size > _room(framed, budget)


def blocks(framed: Framed, ranges: Sequence[slice], budget: int | None) -> Iterator[Framed]:
    """The rows of one range after the other on the device; the next one is copied meanwhile."""
    if not is_streamed(framed, budget):
        yield from (framed.part(part) for part in ranges)
        return
    copier = _Copier(framed.rows, framed.half.device)
    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(copier.copy, part) for part in ranges[:1]]
        for number, part in enumerate(ranges):
            rows = coming.pop().result()
            if number + 1 < len(ranges):
                coming.append(pool.submit(copier.copy, ranges[number + 1]))
            copier.take(rows)
            yield Framed(rows, framed.half[part], framed.ids[part], framed.unit, framed.precision)


class _Copier:
    """Copies rows to a device on a stream of its own, through pinned memory."""

    def __init__(self, rows: Tensor, device: torch.device) -> None:
        self._rows, self._device = rows, device
        self._is_cuda = device.type == "cuda"
        # The stubs lack its signature.
        make_stream: Any = torch.cuda.Stream
        self._stream = make_stream(device) if self._is_cuda else None
        self._pinned: Tensor | None = None

    def copy(self, part: slice) -> Tensor:
        """A copy of the rows; it is there when this returns."""
        if self._stream is None:
            return self._rows[part].to(self._device, copy=True)
        rows = self._rows[part]
        if not rows.is_pinned():
            if self._pinned is None or len(self._pinned) < len(rows):
                self._pinned = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            rows = self._pinned[: len(rows)].copy_(rows)
        with torch.cuda.stream(self._stream):
            copied = rows.to(self._device, non_blocking=True)
        self._stream.synchronize()
        return copied

    def take(self, rows: Tensor) -> None:
        """Keep the allocator from giving the memory away while the caller's stream reads it."""
        if self._is_cuda:
            rows.record_stream(torch.cuda.current_stream(self._device))


def _room(framed: Framed, budget: int | None) -> int:
    device = framed.half.device
    if budget is not None:
        return budget
    if framed.rows.device != device and device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0]) // 2
    return framed.rows.numel() * framed.rows.element_size()
