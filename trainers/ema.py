"""The averaged network: an exponential moving average of everything that is a float.

Averaging the buffers too (batch norm's running mean and variance) keeps them consistent with the
averaged weights; integer buffers are copied.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn


def ramped_decay(decay: float, step: int) -> float:
    """`min(decay, (1 + step) / (10 + step))`: early averages forget the random start quickly."""
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def average(averages: Mapping[str, Tensor], values: Mapping[str, Tensor], decay: float) -> None:
    """In place `average^(t+1) = decay * average^(t) + (1 - decay) * value`, by name.

    Tensors that are not floating point are copied. Values may be of another dtype or device.

    Raises:
        ValueError: The two do not hold the same names.
    """
    if averages.keys() != values.keys():
        odd = sorted(averages.keys() ^ values.keys())
        raise ValueError(f"the network and its average differ in {odd[:5]}; build both alike")
    for name, mean in averages.items():
        value = values[name].detach().to(device=mean.device, dtype=mean.dtype)
        if mean.is_floating_point():
            mean.lerp_(value, 1 - decay)
        else:
            mean.copy_(value)


NetworkType = TypeVar("NetworkType", bound=nn.Module)


class Ema(Generic[NetworkType]):
    """The average of a network over its training steps.

    Attributes:
        network: A copy of the network in eval mode that holds the averages; no gradients.
        num_updates: Steps averaged so far.
    """

    def __init__(self, network: NetworkType, decay: float) -> None:
        """Start from the network's present values.

        Raises:
            ValueError: decay is not in [0, 1).
        """
        if not 0 <= decay < 1:
            raise ValueError(f"decay = {decay}: must be in [0, 1); 0.99 suits short runs")
        self.decay = decay
        self.num_updates = 0
        self.network: NetworkType = copy.deepcopy(network).eval().requires_grad_(False)

    def update(self, network: nn.Module) -> None:
        """Take one step's values in; call it after the optimiser's step."""
        decay = ramped_decay(self.decay, self.num_updates)
        average(self.network.state_dict(), network.state_dict(), decay)
        self.num_updates += 1
