"""Running statistics (batch norm) as if every micro-batch had been seen by one process.

Within a step all micro-batches start from the same buffers and the step's result is their mean;
over ranks the buffers are averaged at the end of a phase. Updates of running statistics are linear,
so the mean over ranks of many steps is the many steps of the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .backbones.frozen import Frozen
from .engine import Comm


def moving_buffers(network: nn.Module) -> list[Tensor]:
    """Buffers outside of frozen parts: those stay as they are, to the last bit."""
    frozen = (m for m in network.modules() if isinstance(m, Frozen))
    still = {id(b) for module in frozen for b in module.buffers()}
    return [b for b in network.buffers() if id(b) not in still]


def float_buffers(network: nn.Module) -> list[Tensor]:
    return [b for b in moving_buffers(network) if b.is_floating_point()]


class StepStatistics:
    """Makes the buffers after a step the mean over its micro-batches; counters count steps."""

    def __init__(self, network: nn.Module, num_micro_batches: int) -> None:
        self._buffers = moving_buffers(network) if num_micro_batches > 1 else []
        self._count = num_micro_batches
        self._start: list[Tensor] = []
        self._sum: list[Tensor] = []

    @torch.no_grad()
    def before_step(self) -> None:
        """Call before the first micro-batch of a step."""
        self._start = [b.clone() for b in self._buffers]
        self._sum = [torch.zeros_like(b) for b in self._buffers]

    @torch.no_grad()
    def after_micro_batch(self, index: int) -> None:
        """Call after the backward pass of micro-batch `index` (0-based, of this rank): batch
        norm's buffers belong to the recorded graph until then."""
        last = index + 1 == self._count
        for buffer, total, start in zip(self._buffers, self._sum, self._start):
            total += buffer
            if not last:
                buffer.copy_(start)
            elif buffer.is_floating_point():
                buffer.copy_(total / self._count)


@torch.no_grad()
def average_over_ranks(network: nn.Module, comm: Comm) -> None:
    """Float buffers become their mean over the ranks; collective."""
    buffers = float_buffers(network)
    if comm.world_size == 1 or not buffers:
        return
    flat = torch.cat([b.detach().float().flatten() for b in buffers])
    mean = comm.all_sum(flat) / comm.world_size
    for buffer, part in zip(buffers, torch.split(mean, [b.numel() for b in buffers])):
        buffer.copy_(part.view_as(buffer))
