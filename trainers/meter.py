"""What the steps between two lines of the log cost, on the average."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .engine import Comm


class Meter:
    """Sums losses and counts steps between two log lines, without waiting for the device."""

    def __init__(self, micro_batches_per_step: int) -> None:
        self._per_step = micro_batches_per_step
        self._reset()

    def add(self, total: Tensor, parts: Mapping[str, Tensor]) -> None:
        for name, value in {"loss": total, **parts}.items():
            old = self._sums.get(name)
            self._sums[name] = value.detach() if old is None else old + value.detach()
        self._count += 1

    def take(self, comm: Comm, *, batch_size: int) -> dict[str, Any]:
        """Means over micro-batches and ranks, and samples per second; starts anew. Collective."""
        names = sorted(self._sums)
        stacked = torch.stack([self._sums[n].float().cpu() for n in names]) / self._count
        means = comm.all_sum(stacked) / comm.world_size
        values = dict(zip(names, means.tolist()))
        steps = self._count / self._per_step
        seconds = time.perf_counter() - self._start
        self._reset()
        return {
            "loss": values.pop("loss"),
            "parts": values,
            "samples_per_s": steps * batch_size / seconds,
        }

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._count = 0
        self._start = time.perf_counter()
