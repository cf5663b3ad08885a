"""Running statistics that a method's loss reads: thresholds, mean predictions ...

A loss gets them as they were before the step and hands back its micro-batch's values; what they
become is decided here, alike on every rank. See `Method.statistics`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .engine import Comm


class RunningStatistics:
    """`s <- m s + (1 - m) v` after each step, v the mean over the step's micro-batches.

    Attributes:
        values: By name, on the training device.
    """

    def __init__(self, start: Mapping[str, Tensor], decay: float, device: torch.device) -> None:
        """Begin at `start`.

        Raises:
            ValueError: decay is not in [0, 1].
        """
        if not 0 <= decay <= 1:
            raise ValueError(f"statistics_decay = {decay}: must be in [0, 1]")
        self.values = {name: value.to(device) for name, value in sorted(start.items())}
        self._decay = decay
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Take in the values of one micro-batch of this rank.

        Raises:
            ValueError: Names or shapes are not those of the statistics.
        """
        if values.keys() != self.values.keys():
            raise ValueError(
                f"the loss gave running statistics {sorted(values)}, the method has "
                f"{sorted(self.values)}; return one value for each"
            )
        for name, value in values.items():
            if value.shape != self.values[name].shape:
                raise ValueError(
                    f"running statistic {name!r} has shape {tuple(self.values[name].shape)}, the "
                    f"loss gave {tuple(value.shape)}"
                )
            old = self._sums.get(name)
            value = value.detach().to(self.values[name])
            self._sums[name] = value if old is None else old + value
        self._count += 1

    def step(self, comm: Comm) -> None:
        """Let the step's values in. Collective, with one exchange; every rank has as many
        micro-batches."""
        if not self.values:
            return
        count = self._count * comm.world_size
        flat = torch.cat([self._sums[name].flatten() for name in self.values])
        means = comm.all_sum(flat) / count
        for (name, old), mean in zip(
            self.values.items(), torch.split(means, [v.numel() for v in self.values.values()])
        ):
            self.values[name] = torch.lerp(mean.view_as(old), old, self._decay)
        self._sums, self._count = {}, 0

    def load(self, values: Mapping[str, Tensor]) -> None:
        """Go on from saved values."""
        self.values = {name: values[name].to(old) for name, old in self.values.items()}
