"""Checkpoints of a run: engine, averaged network, store and position; committed as a whole.

A checkpoint is a folder `checkpoints/epoch-0003`, or `epoch-0003-step-00000120` within the fourth
epoch; it exists once its `COMMIT.json` does, which is written last and holds the size and checksum
of every other file. Older ones are removed after that. All randomness is a function of the position
(`seeds.py`), so a run that goes on from a checkpoint repeats the undisturbed run bit for bit on the
CPU, with as many ranks; with another number, up to the order in which gradients are added up.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from ..datasets.names import check_path
from ..graph_store import snapshot
from ..graph_store.storage import StorageError, file_crc32, sync
from ..graph_store.store import GraphStore
from .engine import Engine
from .run_dir import RunDir
from .running import RunningStatistics
from .together import together

FORMAT = 2
_FOLDER = "checkpoints"
_COMMIT = "COMMIT.json"
_AVERAGED = "averaged.safetensors"
_STATISTICS = "statistics.safetensors"
_STORE = "store"

Ledger = dict[str, dict[str, Any]]
"""File in the checkpoint's folder -> {"size_bytes": 1200, "crc32": "0a1b2c3d"}."""


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


@dataclass(frozen=True)
class Skipped:
    """A committed checkpoint that cannot be used, and why."""

    name: str
    reason: str


def committed(run: RunDir) -> list[str]:
    """Names of the committed checkpoints, oldest first, whole or damaged."""
    return [n for n in _folders(run) if run.exists(f"{_FOLDER}/{n}/{_COMMIT}")]


def newest_intact(run: RunDir, *, deep: bool = True) -> tuple[str | None, list[Skipped]]:
    """The newest checkpoint that is whole, and the newer ones that are not; newest first.

    Args:
        deep: Also read the store's rows, which are most of the bytes; else their sizes are checked.
    """
    skipped: list[Skipped] = []
    for name in reversed(committed(run)):
        try:
            check(run, name, deep=deep)
            return name, skipped
        except StorageError:
            raise  # nothing is known about the checkpoint
        except ValueError as error:
            skipped.append(Skipped(name, str(error)))
    return None, skipped


def check(run: RunDir, name: str, *, deep: bool = True) -> Position:
    """Compare a checkpoint's files with what its commit says.

    Raises:
        ValueError: A file is missing or was changed, or another version of labelmesh wrote them.
        StorageError: The files could not be read.
    """
    commit = _read_commit(run, name)
    for file, about in commit["files"].items():
        path = f"{_FOLDER}/{name}/{file}"
        size = run.files.size(path)
        _compare(f"{run.child(path)}", about, size, None if size is None else run.files.crc32(path))
    if f"{_STORE}/{snapshot.POINTER}" in commit["files"]:
        snapshot.check(store_uri(run, name), deep=deep)
    return Position(**commit["position"])


def set_aside(run: RunDir, skipped: Skipped) -> None:
    """Make a damaged checkpoint one that was never committed; its folder says why until a later
    commit removes it."""
    run.write_text(f"{_FOLDER}/{skipped.name}/DAMAGED.txt", f"{skipped.reason}\n")
    run.remove(f"{_FOLDER}/{skipped.name}/{_COMMIT}")


def read_position(run: RunDir, name: str) -> Position:
    """Raises ValueError where another version of labelmesh wrote the checkpoint."""
    return Position(**_read_commit(run, name)["position"])


def store_uri(run: RunDir, name: str) -> str:
    """Where checkpoint `name` keeps the store."""
    return run.child(f"{_FOLDER}/{name}/{_STORE}")


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
    """Write and commit a checkpoint, then delete all but the newest `keep`; every rank calls it.

    Raises:
        StorageError: On every rank; the checkpoints before it are as they were.
    """
    name, comm = position.name, engine.comm
    folder = f"{_FOLDER}/{name}"
    first = comm.rank == 0
    with together(comm, f"checkpoint {name} was not written"):
        if first:
            run.remove(folder)  # what a crash before the commit may have left
    try:
        with together(comm, f"checkpoint {name} was not written"):
            ledger = _write_networks(run, folder, engine, averaged, statistics)
            if first:
                if store is not None:
                    store.snapshot(store_uri(run, name))
                    ledger |= _store_ledger(run, name)
                _commit(run, folder, position, ledger)
    except StorageError:
        if first:
            with suppress(StorageError):
                run.remove(folder)  # a full disk gets its room back
        raise
    if first:
        with suppress(StorageError):  # the next one tries again
            _forget(run, name, keep)
    comm.barrier()
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

    Raises:
        ValueError: A file was changed since, or is another network's.
    """
    commit = _read_commit(run, name)
    folder = f"{_FOLDER}/{name}"
    files = {f: about for f, about in commit["files"].items() if not f.startswith(f"{_STORE}/")}
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) if run.local_path is None else run.local_path / folder
        if run.local_path is None:
            run.download(folder, source, files)
        for file, about in files.items():
            path, there = source / file, (source / file).is_file()
            size, crc = (path.stat().st_size, file_crc32(path)) if there else (None, None)
            _compare(run.child(f"{folder}/{file}"), about, size, crc)
        engine.load(source / "engine")
        averaged.load_state_dict(safetensors.torch.load_file(source / _AVERAGED))
        statistics.load(safetensors.torch.load_file(source / _STATISTICS))
    return Position(**commit["position"])


def _write_networks(
    run: RunDir,
    folder: str,
    engine: Engine,
    averaged: nn.Module,
    statistics: RunningStatistics,
) -> Ledger:
    """Engine, averaged network and statistics; the first rank writes, all must call it."""
    first = engine.comm.rank == 0
    with tempfile.TemporaryDirectory() as scratch:
        place = RunDir(scratch) if run.local_path is None else RunDir(f"{run.local_path}/{folder}")
        target = place.local_path
        assert target is not None
        engine.save(target / "engine")
        if not first:
            return {}
        place.write_bytes(_AVERAGED, safetensors.torch.save(plain_state(averaged)))
        running = {k: v.cpu().contiguous() for k, v in statistics.values.items()}
        place.write_bytes(_STATISTICS, safetensors.torch.save(running))
        if run.local_path is None:
            run.upload(target, folder)
        return {
            path.relative_to(target).as_posix(): {
                "size_bytes": path.stat().st_size,
                "crc32": file_crc32(path),
            }
            for path in sorted(target.rglob("*"))
            if path.is_file()
        }


def _store_ledger(run: RunDir, name: str) -> Ledger:
    """The two small files of a snapshot that say what is in the others."""
    ledger: Ledger = {}
    for file in snapshot.index_files(store_uri(run, name)):
        path = f"{_FOLDER}/{name}/{_STORE}/{file}"
        ledger[f"{_STORE}/{file}"] = {
            "size_bytes": run.files.size(path),
            "crc32": run.files.crc32(path),
        }
    return ledger


def _commit(run: RunDir, folder: str, position: Position, ledger: Ledger) -> None:
    if run.local_path is not None:  # the names of the new folders, too, are to be on the disk
        for path in (run.local_path / _FOLDER, run.local_path):
            sync(path)
    commit = {"format": FORMAT, "position": asdict(position), "files": ledger}
    run.write_json(f"{folder}/{_COMMIT}", commit)


def _forget(run: RunDir, newest: str, keep: int) -> None:
    """Delete all but the last `keep` up to `newest`: older ones, what was never committed, and
    what is ahead of it, which a run that went back to an earlier one does not want."""
    kept = [n for n in committed(run) if n <= newest][-keep:]
    for name in (n for n in _folders(run) if n not in kept):
        run.remove(f"{_FOLDER}/{name}/{_COMMIT}")  # first: a half of one is none
        run.remove(f"{_FOLDER}/{name}")


def _folders(run: RunDir) -> list[str]:
    return [n for n in run.names(_FOLDER) if n.startswith("epoch-")]


def _read_commit(run: RunDir, name: str) -> dict[str, Any]:
    path = f"{_FOLDER}/{name}/{_COMMIT}"
    try:
        commit = run.read_json(path)
        found = commit.get("format", 1)
    except (ValueError, AttributeError) as error:
        if isinstance(error, StorageError):
            raise
        raise ValueError(f"{run.child(path)} is damaged: it is no JSON object") from None
    if found != FORMAT:
        raise ValueError(
            f"{run.child(path)}: checkpoint of format {found}, this version of labelmesh reads "
            f"{FORMAT}; go on with the version that wrote it, or start anew under another --name"
        )
    assert isinstance(commit, dict)
    for file in commit["files"]:
        check_path(file, run.child(path))
    return commit


def _compare(uri: str, about: Mapping[str, Any], size: int | None, crc32: str | None) -> None:
    if size is None:
        raise ValueError(f"{uri} is missing; the checkpoint is damaged")
    if size != about["size_bytes"]:
        raise ValueError(
            f"{uri} has {size} bytes, {about['size_bytes']} were written; the checkpoint is damaged"
        )
    if crc32 != about["crc32"]:
        raise ValueError(
            f"{uri} has checksum {crc32}, {about['crc32']} was written; the checkpoint is damaged"
        )


def plain_state(network: nn.Module) -> dict[str, torch.Tensor]:
    """A network's state as contiguous CPU tensors."""
    return {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
