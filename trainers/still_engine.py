"""The engine of networks in which there is nothing to train."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..graph_store.view import Neighborhood
from .engine import Comm
from .engine_state import SavedState, load_network, named_state, network_name, write_state
from .method import ModelOutput, Network


def has_nothing_to_train(network: nn.Module) -> bool:
    return not any(p.requires_grad for p in network.parameters())


class StillEngine:
    """Holds a network and never steps it: optimisers and DeepSpeed refuse one without parameters.

    Args:
        comm: Of the engine that would train it.
    """

    def __init__(self, network: Network, device: torch.device, comm: Comm) -> None:
        self.network = network.to(device)
        self.device = device
        self.comm = comm

    @torch.no_grad()
    def __call__(self, inputs: Tensor, neighborhood: Neighborhood | None = None) -> ModelOutput:
        out: ModelOutput = self.network(inputs, neighborhood)
        return out

    def micro_step(self, loss: Tensor, *, lr: float, last: bool) -> None:
        """There are no steps.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "a step was asked for, but no parameter of this network is trained; set "
            "model.freeze = false, or use a method without steps such as 'knn'"
        )

    def gathered(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def save(self, folder: Path) -> None:
        tensors = [(network_name(n), value) for n, value in named_state(self.network).items()]
        write_state(folder, tensors, optimizer=None, first=self.comm.rank == 0)

    def load(self, folder: Path) -> None:
        saved = SavedState(folder)
        saved.check_fits(named_state(self.network), optimizer=None)
        load_network(self.network, saved)
