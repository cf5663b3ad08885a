"""Products as exact as their dtype, whatever the program has set for its network."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

# Each hides its own switch; `torch.get_float32_matmul_precision` raises where they differ.
_MKLDNN: Any = torch.backends.mkldnn  # the type stubs lack its `matmul`
_SWITCHES: tuple[Any, ...] = (torch.backends.cuda.matmul, _MKLDNN.matmul)


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """IEEE products of float32 matrices: no TF32 or bfloat16, and no autocast.

    A network may be trained with less (`torch.set_float32_matmul_precision`, `torch.autocast`),
    but its products would be further off than the kNN filter allows for. The precision is global,
    so while anybody is inside it holds for other threads too.
    """
    with _ieee, torch.autocast(device.type, enabled=False):
        yield


class _Ieee:
    """Sets the precision when the first thread comes and restores it when the last one leaves."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[str] = []

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = [switch.fp32_precision for switch in _SWITCHES]
                _set(["ieee"] * len(_SWITCHES))
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                _set(self._before)


def _set(values: list[str]) -> None:
    for switch, value in zip(_SWITCHES, values):
        switch.fp32_precision = value


_ieee = _Ieee()
