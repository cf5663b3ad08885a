"""Checkpoints of a run: engine, averaged network, store and position; committed as a whole.

A checkpoint is a folder `checkpoints/epoch-0003`; it exists once its `COMMIT.json` does, which is
written last. All randomness is a function of the position (`seeds.py`), so a run that goes on from
a checkpoint repeats the undisturbed run bit for bit on the CPU.
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

_FOLDER = "checkpoints"
_COMMIT = "COMMIT.json"


@dataclass(frozen=True)
class Position:
    """Where a run stands: epochs finished, optimiser steps done, ranks that wrote the files."""

    epoch: int
    step: int
    world_size: int


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
    store: GraphStore | None,
    keep: int,
) -> str:
    """Write and commit a checkpoint, then delete all but the newest `keep`; every rank calls it."""
    name = f"epoch-{position.epoch:04d}"
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
            safetensors.torch.save_file(plain_state(averaged), target / "averaged.safetensors")
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


def load(run: RunDir, name: str, *, engine: Engine, averaged: nn.Module) -> Position:
    """Load a checkpoint into engine and averaged network; the store is restored by its creator.

    Raises:
        ValueError: Written by another number of workers (ZeRO's files cannot change it).
    """
    position = read_position(run, name)
    if position.world_size != engine.comm.world_size:
        raise ValueError(
            f"checkpoint {name} was written by {position.world_size} workers, this run has "
            f"{engine.comm.world_size}; resume with train.num_workers = {position.world_size}"
        )
    folder = f"{_FOLDER}/{name}"
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) if run.local_path is None else run.local_path / folder
        if run.local_path is None:
            run.download(folder, source)
        engine.load(source / "engine")
        averaged.load_state_dict(safetensors.torch.load_file(source / "averaged.safetensors"))
    return position


def plain_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """A network's state as contiguous CPU tensors."""
    return {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
