"""Checkpoints of a run: engine, averaged network, store and position; committed as a whole.

A checkpoint is a folder `checkpoints/epoch-0003`, or `epoch-0003-step-00000120` within the fourth
epoch; it exists once its `COMMIT.json` does, which is written last. All randomness is a function of
the position (`seeds.py`), so a run that goes on from a checkpoint repeats the undisturbed run bit
for bit on the CPU.
"""

from __future__ import annotations

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from ..graph_store.store import GraphStore
from .engine import Engine
from .run_dir import RunDir
from .running import RunningStatistics

_FOLDER = "checkpoints"
_COMMIT = "COMMIT.json"
_AVERAGED = "averaged.safetensors"
_STATISTICS = "statistics.safetensors"


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
        epoch: Epochs finished.
        step: Optimiser steps done, warm-up included.
        world_size: Ranks that wrote the files; any number can read them.
        phase: Phases finished of the epoch that is going on.
        phase_step: Steps done of the phase that is going on.
    """

    epoch: int
    step: int
    world_size: int
    phase: int = 0
    phase_step: int = 0

    @property
    def within_epoch(self) -> bool:
        """Whether an epoch is going on; its round, where one was due, is in the store."""
        return self.phase > 0 or self.phase_step > 0

    @property
    def name(self) -> str:
        """Of the checkpoint's folder; names sort by age."""
        within = f"-step-{self.step:08d}" if self.within_epoch else ""
        return f"epoch-{self.epoch:04d}{within}"


def committed(run: RunDir) -> list[str]:
    """Names of the committed checkpoints, oldest first."""
    names = [n for n in run.names(_FOLDER) if n.startswith("epoch-")]
    return [n for n in names if run.exists(f"{_FOLDER}/{n}/{_COMMIT}")]


def read_position(run: RunDir, name: str) -> Position:
    return Position(**run.read_json(f"{_FOLDER}/{name}/{_COMMIT}"))


def store_uri(run: RunDir, name: str) -> str:
    """Where checkpoint `name` keeps the store."""
    return run.child(f"{_FOLDER}/{name}/store")


def save(
    run: RunDir,
    position: Position,
    *,
    engine: Engine,
    averaged: nn.Module,
    statistics: RunningStatistics,
    store: GraphStore | None,
    keep: int,
) -> str:
    """Write and commit a checkpoint, then delete all but the newest `keep`; every rank calls it."""
    name = position.name
    folder = f"{_FOLDER}/{name}"
    first = engine.comm.rank == 0
    if first:
        run.remove(folder)  # what a crash before the commit may have left
    engine.comm.barrier()
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) if run.local_path is None else run.local_path / folder
        (target / "engine").mkdir(parents=True, exist_ok=True)
        engine.save(target / "engine")
        if first:
            safetensors.torch.save_file(plain_state(averaged), target / _AVERAGED)
            running = {k: v.cpu().contiguous() for k, v in statistics.values.items()}
            safetensors.torch.save_file(running, target / _STATISTICS)
        if run.local_path is None:
            run.upload(Path(scratch), folder)
    if first and store is not None:
        store.snapshot(store_uri(run, name))
    engine.comm.barrier()
    if first:
        run.write_json(f"{folder}/{_COMMIT}", asdict(position))
        for old in committed(run)[:-keep]:
            run.remove(f"{_FOLDER}/{old}")
    engine.comm.barrier()
    return name


def load(
    run: RunDir,
    name: str,
    *,
    engine: Engine,
    averaged: nn.Module,
    statistics: RunningStatistics,
) -> Position:
    """Load a checkpoint into engine, averaged network and running statistics; the store is
    restored by its creator.

    Any number of ranks with any engine can load what any other saved.
    """
    position = read_position(run, name)
    folder = f"{_FOLDER}/{name}"
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) if run.local_path is None else run.local_path / folder
        if run.local_path is None:
            run.download(folder, source)
        engine.load(source / "engine")
        averaged.load_state_dict(safetensors.torch.load_file(source / _AVERAGED))
        statistics.load(safetensors.torch.load_file(source / _STATISTICS))
    return position


def plain_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """A network's state as contiguous CPU tensors."""
    return {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
