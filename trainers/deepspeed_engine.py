"""The engine on DeepSpeed: data parallel over the ranks of an initialised process group.

This and `deepspeed_state.py` are the only importers of deepspeed. ZeRO stages 0 to 3 come from
`train.deepspeed` unchanged.
"""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..graph_store.view import Hop, Neighborhood
from .config import TrainSpec
from .deepspeed_state import load_whole_tensors, whole_tensors
from .engine import (
    COMPILER,
    Comm,
    Engine,
    check_compiler,
    make_optimizer,
    set_learning_rate,
    uses_bf16,
    widened,
)
from .engine_state import SavedState, named_state, write_state
from .method import ModelOutput, Network
from .still_engine import StillEngine, has_nothing_to_train


class ProcessGroupComm:
    """Ranks of the default torch.distributed group."""

    def __init__(self, device: torch.device) -> None:
        self.rank = dist.get_rank()
        self.world_size = dist.get_world_size()
        # NCCL moves only device tensors; gloo takes the CPU's.
        self._device = device if dist.get_backend() == "nccl" else torch.device("cpu")

    def all_sum(self, x: Tensor) -> Tensor:
        # Gathered and added in rank order: all_reduce's order of additions is the backend's own.
        parts = [torch.empty_like(x, device=self._device) for _ in range(self.world_size)]
        dist.all_gather(parts, x.to(self._device).contiguous())
        return torch.stack(parts).sum(0).to(x.device)

    def barrier(self) -> None:
        dist.barrier()


class _Flat(nn.Module):
    """The network with tensors alone in its signature: ZeRO's hooks see through nothing else."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    num_classes = 0
    """Columns of the logits; a forward pass sets it."""

    def forward(self, inputs: Tensor, *hops: Tensor) -> tuple[Tensor, Tensor]:
        fields = [hops[i : i + 4] for i in range(0, len(hops), 4)]
        neighborhood = Neighborhood(tuple(Hop(*f) for f in fields)) if hops else None
        out = self.network(inputs, neighborhood)
        self.num_classes = out.logits.shape[1]
        return out.features, out.outputs


class DeepSpeedEngine:
    """Wraps `deepspeed.initialize`; the process group must exist."""

    def __init__(self, network: Network, train: TrainSpec, device: torch.device) -> None:
        os.environ["DS_ACCELERATOR"] = "cuda" if device.type == "cuda" else "cpu"
        deepspeed = _import_deepspeed()
        self.network = network
        self.device = device
        self.comm: Comm = ProcessGroupComm(device)
        network.to(device)
        self._train = train
        self._flat = _Flat(network)
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=self._flat,
            optimizer=make_optimizer(network, train),
            config=deepspeed_config(
                train, world_size=self.comm.world_size, bf16=uses_bf16(train, device)
            ),
            # Ray shows every GPU of a node to each of its workers: the rank's own is `device`.
            args=SimpleNamespace(device_rank=device.index or 0),
            dist_init_required=False,
        )
        if train.compile:
            check_compiler(device)
            self._engine.compile(backend=COMPILER)

    def __call__(self, inputs: Tensor, neighborhood: Neighborhood | None = None) -> ModelOutput:
        hops = () if neighborhood is None else neighborhood.hops
        flat = [t for h in hops for t in (h.index, h.node_ids, h.features, h.density)]
        features, outputs = self._engine(inputs, *flat)
        return widened(features, outputs, num_classes=self._flat.num_classes)

    def micro_step(self, loss: Tensor, *, lr: float, last: bool) -> None:
        self._engine.backward(loss)
        if last:
            set_learning_rate(self._optimizer.param_groups, lr)
        self._engine.step()

    def gathered(self) -> AbstractContextManager[Any]:
        if self._engine.zero_optimization_stage() < 3:
            return nullcontext()
        import deepspeed

        gathered: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(
            list(self.network.parameters())
        )
        return gathered

    def save(self, folder: Path) -> None:
        tensors = whole_tensors(self._engine, self.network, self._train)
        write_state(folder, tensors, optimizer=self._train.optimizer, first=self.comm.rank == 0)

    def load(self, folder: Path) -> None:
        saved = SavedState(folder)
        saved.check_fits(named_state(self.network), optimizer=self._train.optimizer)
        load_whole_tensors(self._engine, self.network, saved, self._train)


def deepspeed_engine(network: Network, train: TrainSpec, device: torch.device) -> Engine:
    """The engine of one rank; the process group must exist."""
    if has_nothing_to_train(network):
        return StillEngine(network, device, ProcessGroupComm(device))
    return DeepSpeedEngine(network, train, device)


def _import_deepspeed() -> Any:
    """DeepSpeed without two things that no run here uses, and every worker would wait for.

    Its tuner of batch sizes imports mlflow where that is installed: three quarters of the time
    that the import takes. Its communication compiles a kernel in C++ on first use, for a sum over
    the CPUs of one machine in inference; ours go through torch's gloo and NCCL.
    """
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = cast(Any, None)  # Python's way to say that it is not installed
    try:
        import deepspeed
    finally:
        if hidden:
            del sys.modules["mlflow"]
    # Otherwise every operation is probed with compilers on first use, for that kernel alone.
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def deepspeed_config(train: TrainSpec, *, world_size: int, bf16: bool) -> dict[str, Any]:
    """DeepSpeed's configuration: what Labelmesh decides, then the user's own keys as they are.

    bf16 is autocast: weights and buffers stay float32, so that batch norm, the averaged network and
    prediction work alike in every engine.
    """
    micro_batch = train.batch_size // train.micro_batches
    config: dict[str, Any] = {
        "train_batch_size": train.batch_size,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": train.micro_batches // world_size,
        "gradient_clipping": train.grad_clip,
        "torch_autocast": {"enabled": bf16, "dtype": "bfloat16"},
        "zero_optimization": {"stage": 0},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31 - 1,
    }
    return {**config, **train.deepspeed}
