"""What an engine leaves on disk: the same files whatever the engine, the ZeRO stage, the ranks.

    engine.json                 {"format": 1, "optimizer": "adamw", "files": [...]}
    engine-0000.safetensors     network/<name>, optimizer/<name of a parameter>/<key>

Whole tensors under the names that the network gives them, so a state written by any number of
ranks can be read by any other. Tensors are passed on one by one and written in files of about
`FILE_BYTES`: no more than that is held in memory beside the network.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import safe_open
from torch import Tensor, nn

from ..graph_store.places import check_name
from ..graph_store.storage import Storage, StorageError
from .config import TrainSpec

FORMAT = 1
FILE_BYTES = 512 << 20
STEP = "step"
_ABOUT = "engine.json"
_FILE = re.compile(r"engine-\d{4,}\.safetensors")


def state_keys(train: TrainSpec) -> tuple[str, ...]:
    """Tensors that the optimiser keeps for each parameter, in the parameter's shape."""
    if train.optimizer == "adamw":
        return ("exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if train.momentum else ()


def named_state(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and saved buffers by name, themselves; what has two names is there once."""
    seen: set[int] = set()
    out: dict[str, Tensor] = {}
    for name, value in network.state_dict(keep_vars=True).items():
        if id(value) not in seen:
            seen.add(id(value))
            out[name] = value
    return out


def trained(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the optimiser has, by name."""
    return {n: p for n, p in network.named_parameters() if p.requires_grad}


def network_name(name: str) -> str:
    return f"network/{name}"


def optimizer_name(name: str, key: str) -> str:
    return f"optimizer/{name}/{key}"


def write_state(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], *, optimizer: str | None, first: bool
) -> None:
    """Write what `tensors` yields; every rank calls it, the first one writes.

    Getting a tensor may be collective, so all ranks go through all of them, also where writing
    fails.

    Raises:
        StorageError: After the last tensor; the folder is not readable then.
    """
    writer = _Writer(folder) if first else None
    error: StorageError | None = None
    for name, value in tensors:
        if writer is not None and error is None:
            try:
                writer.add(name, value)
            except StorageError as broken:
                error = broken
    if error is not None:
        raise error
    if writer is not None:
        writer.close({"format": FORMAT, "optimizer": optimizer})


class SavedState(Mapping[str, Tensor]):
    """The tensors of a folder by name, read as they are asked for; on the CPU.

    Raises:
        ValueError: The folder has no state that this version reads.
    """

    def __init__(self, folder: Path) -> None:
        try:
            about = json.loads((folder / _ABOUT).read_text())
        except FileNotFoundError:
            raise ValueError(
                f"{folder} holds no training state of this version of labelmesh (no {_ABOUT}); "
                "go on with the version that wrote it, or start the run anew under another --name"
            ) from None
        if about["format"] != FORMAT:
            raise ValueError(
                f"{folder}: the training state has format {about['format']}, this version reads "
                f"{FORMAT}; go on with the version that wrote it"
            )
        self.optimizer: str | None = about["optimizer"]
        self._folder = folder
        names = [check_name(file, _FILE, f"{folder / _ABOUT}") for file in about["files"]]
        files: list[Any] = [safe_open(folder / name, framework="pt") for name in names]
        self._files = {str(name): file for file in files for name in file.keys()}  # noqa: SIM118

    def __getitem__(self, name: str) -> Tensor:
        value: Tensor = self._files[name].get_tensor(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def check_fits(self, state: Mapping[str, Tensor], *, optimizer: str | None) -> None:
        """Raises ValueError where this is the state of another network or optimiser."""
        names = {name for name in self if name.startswith(network_name(""))}
        odd = sorted(names ^ {network_name(name) for name in state})
        if odd:
            raise ValueError(
                f"{self._folder}: the saved network and this one differ in {odd[:5]}; resume with "
                "the configuration that the run was started with"
            )
        if self.optimizer != optimizer:
            raise ValueError(
                f"{self._folder}: saved with train.optimizer = {self.optimizer!r}, this run has "
                f"{optimizer!r}; resume with the configuration that the run was started with"
            )


class _Writer:
    def __init__(self, folder: Path) -> None:
        self._folder = Storage(str(folder))
        self._files: list[str] = []
        self._held: dict[str, Tensor] = {}
        self._held_bytes = 0

    def add(self, name: str, value: Tensor) -> None:
        # A copy: what was gathered is freed again, and safetensors takes no shared memory.
        self._held[name] = value.detach().to("cpu", copy=True).contiguous()
        self._held_bytes += value.numel() * value.element_size()
        if self._held_bytes >= FILE_BYTES:
            self._flush()

    def close(self, about: dict[str, Any]) -> None:
        self._flush()
        text = json.dumps({**about, "files": self._files}, indent=1)
        self._folder.write(_ABOUT, (text + "\n").encode())

    def _flush(self) -> None:
        if not self._held:
            return
        file = f"engine-{len(self._files):04d}.safetensors"
        self._folder.write(file, safetensors.torch.save(self._held))
        self._files.append(file)
        self._held, self._held_bytes = {}, 0


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, network: nn.Module, train: TrainSpec
) -> Iterator[tuple[str, Tensor]]:
    """What torch's own optimiser keeps; a parameter that never had a gradient has nothing."""
    for name, parameter in trained(network).items():
        state = optimizer.state.get(parameter, {})
        for key in (*state_keys(train), STEP):
            if state.get(key) is not None:
                yield optimizer_name(name, key), state[key]


@torch.no_grad()
def load_network(network: nn.Module, saved: SavedState) -> None:
    """Fill parameters and buffers that lie here whole."""
    for name, value in named_state(network).items():
        value.copy_(saved[network_name(name)])


def load_optimizer(
    optimizer: torch.optim.Optimizer, network: nn.Module, saved: SavedState, train: TrainSpec
) -> None:
    """The inverse of `optimizer_tensors`."""
    optimizer.state.clear()
    for name, parameter in trained(network).items():
        state = {
            key: saved[optimizer_name(name, key)].to(parameter.device)
            for key in state_keys(train)
            if optimizer_name(name, key) in saved
        }
        if optimizer_name(name, STEP) in saved:
            state[STEP] = saved[optimizer_name(name, STEP)]  # torch counts on the CPU
        if state:
            optimizer.state[parameter] = state
