"""The engine of networks in which there is nothing to train."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..graph_store.view import Neighborhood
from .engine import Comm
from .method import ModelOutput, Network

_FILE = "still_engine.safetensors"


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
        """Write the network; the first rank does, all have the same."""
        if self.comm.rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            state = {k: v.detach().cpu() for k, v in self.network.state_dict().items()}
            safetensors.torch.save_file(state, folder / _FILE)

    def load(self, folder: Path) -> None:
        self.network.load_state_dict(safetensors.torch.load_file(folder / _FILE))
