"""Products as exact as their dtype, whatever the program has set for its network."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

# Each hides its own switch; `torch.get_float32_matmul_precision` raises where they differ.
_CUDA: Any = torch.backends.cuda.matmul
_MKLDNN: Any = torch.backends.mkldnn  # the type stubs lack its `matmul`
_Kind = Literal["ieee", "tf32"]


@contextmanager
def exact_products(device: torch.device) -> Iterator[None]:
    """IEEE products of float32 matrices: no TF32 or bfloat16, and no autocast.

    A network may be trained with less (`torch.set_float32_matmul_precision`, `torch.autocast`),
    but its products would be further off than the kNN filter allows for. The precision is global,
    so while anybody is inside it holds for other threads too. Sums of float16 are in float32.
    """
    with _products("ieee", device):
        yield


@contextmanager
def tf32_products(device: torch.device) -> Iterator[None]:
    """Products of float32 matrices on CUDA's TF32 units: exact up to their sums for TF32 rows.

    Waits until nobody is in `exact_products` in any thread, and they wait for this; so it must
    not be entered from there.
    """
    with _products("tf32", device):
        yield


@contextmanager
def _products(kind: _Kind, device: torch.device) -> Iterator[None]:
    with torch.autocast(device.type, enabled=False):
        _switches.enter(kind)
        try:
            yield
        finally:
            _switches.leave()


class _Switches:
    """Sets the precision when the first thread comes and restores it when the last one leaves."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._inside = 0
        self._kind: _Kind = "ieee"
        self._before: tuple[str, str, bool] = ("", "", False)

    def enter(self, kind: _Kind) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._inside == 0 or self._kind == kind)
            if self._inside == 0:
                self._before = (
                    _CUDA.fp32_precision,
                    _MKLDNN.matmul.fp32_precision,
                    _CUDA.allow_fp16_accumulation,
                )
                _set(kind, "ieee", False)
            self._kind = kind
            self._inside += 1

    def leave(self) -> None:
        with self._changed:
            self._inside -= 1
            if self._inside == 0:
                _set(*self._before)
                self._changed.notify_all()


def _set(cuda: str, mkldnn: str, adds_in_float16: bool) -> None:
    _CUDA.fp32_precision, _MKLDNN.matmul.fp32_precision = cuda, mkldnn
    _CUDA.allow_fp16_accumulation = adds_in_float16


_switches = _Switches()
