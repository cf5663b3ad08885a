"""What steps the network: the promise, and its one-process fulfilment in plain torch.

An engine owns the network's parameters and the optimiser. One optimiser step is a sequence of
`micro_step` calls; the gradient is the mean over all micro-batches of all ranks.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import shutil
import sysconfig
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from ..graph_store.view import Neighborhood
from .config import TrainSpec
from .engine_state import (
    SavedState,
    load_network,
    load_optimizer,
    named_state,
    network_name,
    optimizer_tensors,
    write_state,
)
from .method import ModelOutput, Network

COMPILER = "inductor"
"""What torch.compile hands the network to."""


@runtime_checkable
class Comm(Protocol):
    """What ranks say to each other outside the engine. Collective."""

    rank: int
    world_size: int

    def all_sum(self, x: Tensor) -> Tensor:
        """Sum of `x` over the ranks, in rank order."""
        ...

    def barrier(self) -> None: ...


class LocalComm:
    """One rank."""

    rank = 0
    world_size = 1

    def all_sum(self, x: Tensor) -> Tensor:
        return x

    def barrier(self) -> None:
        return None


@runtime_checkable
class Engine(Protocol):
    """Steps a network. `device` is where inputs must lie."""

    network: Network
    comm: Comm
    device: torch.device

    def __call__(self, inputs: Tensor, neighborhood: Neighborhood | None = None) -> ModelOutput: ...

    def micro_step(self, loss: Tensor, *, lr: float, last: bool) -> None:
        """Back-propagate one micro-batch; with `last`, step the optimiser at rate `lr`."""
        ...

    def gathered(self) -> AbstractContextManager[Any]:
        """Within it, `network` holds whole parameters on every rank."""
        ...

    def save(self, folder: Path) -> None:
        """Write parameters, buffers and optimiser state; every rank calls it.

        The files are those of `engine_state.py` whatever the engine and the number of ranks.

        Raises:
            StorageError: On the rank that writes, after what is collective.
        """
        ...

    def load(self, folder: Path) -> None:
        """Take over what any engine with any number of ranks saved; every rank calls it.

        Raises:
            ValueError: Nothing that can be read here, or of another network or optimiser.
        """
        ...


def make_optimizer(network: nn.Module, train: TrainSpec) -> torch.optim.Optimizer:
    """SGD or AdamW; biases and norms (tensors of one dimension) are decayed only where asked."""
    trainable = [p for p in network.parameters() if p.requires_grad]
    few = train.weight_decay if train.decay_norm_and_bias else 0.0
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": train.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": few},
    ]
    groups = [g for g in groups if g["params"]]
    if train.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=train.lr, betas=train.betas)
    nesterov = train.nesterov and train.momentum > 0
    return torch.optim.SGD(groups, lr=train.lr, momentum=train.momentum, nesterov=nesterov)


class LocalEngine:
    """Plain torch in one process: float32, or bf16 autocast on a GPU."""

    def __init__(self, network: Network, train: TrainSpec, device: torch.device) -> None:
        self.network = network.to(device)
        self.device = device
        self.comm: Comm = LocalComm()
        self._train = train
        self._optimizer = make_optimizer(network, train)
        self._bf16 = uses_bf16(train, device)
        # `network` stays plain: state dicts, averages and evaluation know nothing of compilation.
        self._call: Callable[..., ModelOutput] = self.network
        if train.compile:
            check_compiler(device)
            self._call = torch.compile(self.network, backend=COMPILER)

    def __call__(self, inputs: Tensor, neighborhood: Neighborhood | None = None) -> ModelOutput:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bf16):
            out = self._call(inputs, neighborhood)
        return widened(out.features, out.outputs, num_classes=out.logits.shape[1])

    def micro_step(self, loss: Tensor, *, lr: float, last: bool) -> None:
        (loss / self._train.micro_batches).backward()  # type: ignore[no-untyped-call]
        if not last:
            return
        if self._train.grad_clip:
            nn.utils.clip_grad_norm_(self.network.parameters(), self._train.grad_clip)
        set_learning_rate(self._optimizer.param_groups, lr)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)

    def gathered(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def save(self, folder: Path) -> None:
        network = ((network_name(n), value) for n, value in named_state(self.network).items())
        optimizer = optimizer_tensors(self._optimizer, self.network, self._train)
        write_state(
            folder, itertools.chain(network, optimizer), optimizer=self._train.optimizer, first=True
        )

    def load(self, folder: Path) -> None:
        saved = SavedState(folder)
        saved.check_fits(named_state(self.network), optimizer=self._train.optimizer)
        load_network(self.network, saved)
        load_optimizer(self._optimizer, self.network, saved, self._train)


def widened(features: Tensor, outputs: Tensor, *, num_classes: int) -> ModelOutput:
    """An output in float32, whatever the network computed in."""
    outputs = outputs.float()
    return ModelOutput(features.float(), outputs[:, :num_classes], outputs)


def set_learning_rate(groups: Iterable[dict[str, Any]], lr: float) -> None:
    for group in groups:
        group["lr"] = lr


def check_compiler(device: torch.device) -> None:
    """What torch.compile needs beside torch: looked for before the first step.

    Raises:
        ValueError: No compiler, Python headers or (for GPUs) Triton here.
    """
    on_gpu = device.type == "cuda"
    variable, usual = ("CC", ("gcc", "clang")) if on_gpu else ("CXX", ("g++", "clang++"))
    names = [n for n in (os.environ.get(variable), *usual) if n]
    header = os.path.join(sysconfig.get_paths()["include"], "Python.h")
    lacking = []
    if not any(shutil.which(n) for n in names):
        lacking.append(f"a compiler (none of {', '.join(names)})")
    if not os.path.exists(header):
        lacking.append(f"Python's headers (no {header})")
    if on_gpu and importlib.util.find_spec("triton") is None:
        lacking.append("the package triton")
    if lacking:
        raise ValueError(
            f"train.compile = true: this machine lacks {' and '.join(lacking)}; install that, or "
            "set train.compile = false"
        )


def uses_bf16(train: TrainSpec, device: torch.device) -> bool:
    """bf16 on GPUs and float32 on CPUs, unless `train.precision` says otherwise."""
    return train.precision == "bf16" or (train.precision == "auto" and device.type == "cuda")
