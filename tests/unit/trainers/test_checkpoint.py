"""Checkpoints are whole or not there, and say so."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from labelmesh.graph_store.local_store import LocalStore
from labelmesh.graph_store.storage import StorageError
from labelmesh.graph_store.store import StoreSpec
from labelmesh.trainers import checkpoint, engine_state
from labelmesh.trainers.checkpoint import Position, committed, newest_intact
from labelmesh.trainers.config import TrainSpec
from labelmesh.trainers.engine import LocalEngine
from labelmesh.trainers.methods.linear_probe import LinearProbe
from labelmesh.trainers.run_dir import RunDir
from labelmesh.trainers.running import RunningStatistics
from labelmesh.trainers.together import together
from torch import Tensor, nn

CPU = torch.device("cpu")
TRAIN = TrainSpec(epochs=1, precision="fp32")


class Run:
    """A run of a small network and store; `value` is in all that it saves."""

    def __init__(self, uri: str) -> None:
        self.dir = RunDir(uri)
        self.engine = LocalEngine(LinearProbe().build(nn.Identity(), 4, 2), TRAIN, CPU)
        self.averaged = LinearProbe().build(nn.Identity(), 4, 2)
        self.statistics = RunningStatistics({"mean": torch.zeros(3)}, 0.9, CPU)
        self.store = LocalStore(StoreSpec(num_nodes=6, dim=4, num_classes=2, k=1))

    def save(self, epoch: int, value: float, *, keep: int = 2) -> None:
        with torch.no_grad():
            for network in (self.engine.network, self.averaged):
                for parameter in network.parameters():
                    parameter.fill_(value)
        self.statistics.load({"mean": torch.full((3,), value)})
        position = Position(epoch, 10 * epoch, 1)
        objects = {"engine": self.engine, "averaged": self.averaged, "statistics": self.statistics}
        checkpoint.save(self.dir, position, **objects, store=self.store, keep=keep)  # type: ignore[arg-type]

    def load(self, name: str) -> set[float]:
        """What the checkpoint holds."""
        objects = {"engine": self.engine, "averaged": self.averaged, "statistics": self.statistics}
        checkpoint.load(self.dir, name, **objects)  # type: ignore[arg-type]
        networks = [*self.engine.network.parameters(), *self.averaged.parameters()]
        tensors = [*networks, self.statistics.values["mean"]]
        return {x for t in tensors for x in t.detach().flatten().tolist()}


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    return Run(str(tmp_path / "run") if request.param == "local" else f"memory://{tmp_path.name}/r")


def test_what_was_saved_is_loaded_and_old_ones_go(run: Run) -> None:
    for epoch in (1, 2, 3):
        run.save(epoch, float(epoch))
    assert committed(run.dir) == ["epoch-0002", "epoch-0003"]
    assert newest_intact(run.dir) == ("epoch-0003", [])
    assert run.load("epoch-0002") == {2.0}
    assert run.load("epoch-0003") == {3.0}
    assert checkpoint.read_position(run.dir, "epoch-0003") == Position(3, 30, 1)
    store = LocalStore.restore(checkpoint.store_uri(run.dir, "epoch-0003"))
    assert store.spec == run.store.spec


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("engine/engine-0000.safetensors", "changed"),
        ("engine/engine.json", "changed"),
        ("averaged.safetensors", "changed"),
        ("averaged.safetensors", "missing"),
        ("statistics.safetensors", "shorter"),
        ("store/CURRENT", "changed"),
        ("store/v000001/manifest.json", "changed"),
        ("store/v000001/shard-0000.safetensors", "changed"),
        ("store/v000001/shard-0000.safetensors", "missing"),
        ("COMMIT.json", "changed"),
        ("COMMIT.json", "shorter"),
        ("COMMIT.json", "missing"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(file: str, damage: str, tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    run.save(1, 1.0)
    run.save(2, 2.0)
    path = tmp_path / "checkpoints" / "epoch-0002" / file
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "shorter":
        path.write_bytes(content[:-3])
    else:
        content[0 if file == "COMMIT.json" else len(content) // 2] ^= 1
        path.write_bytes(content)
    name, skipped = newest_intact(run.dir)
    assert name == "epoch-0001"
    if (file, damage) == ("COMMIT.json", "missing"):
        assert skipped == []
    else:
        assert [s.name for s in skipped] == ["epoch-0002"]
        assert "damaged" in skipped[0].reason
    if not file.startswith("store") and damage != "missing":
        with pytest.raises(ValueError, match="damaged"):
            run.load("epoch-0002")
    assert run.load("epoch-0001") == {1.0}


def test_what_is_ahead_of_a_commit_is_given_up(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    run.save(1, 1.0)
    run.save(3, 3.0)
    (tmp_path / "checkpoints/epoch-0003/averaged.safetensors").unlink()
    (tmp_path / "checkpoints/epoch-0001-step-00000012").mkdir()  # never committed
    run.save(2, 2.0, keep=1)  # the run went back to epoch 1
    assert run.dir.names("checkpoints") == ["epoch-0002"]


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path) -> None:
    run = Run(str(tmp_path))
    run.save(1, 1.0)
    old = {"epoch": 1, "step": 10, "world_size": 1, "phase": 0, "phase_step": 0}
    run.dir.write_json("checkpoints/epoch-0001/COMMIT.json", old)
    with pytest.raises(
        ValueError, match=r"checkpoint of format 1, this version.*reads 2; go on with"
    ):
        run.load("epoch-0001")
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine/local_engine.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="holds no training state of this version of labelmesh"):
        run.engine.load(tmp_path / "engine")


@pytest.mark.parametrize("file", ["../../config.toml", "/etc/passwd", "s3://b/engine.json"])
def test_a_checkpoint_that_names_files_elsewhere_is_refused(file: str, run: Run) -> None:
    run.save(1, 1.0)
    path = "checkpoints/epoch-0001/COMMIT.json"
    commit = run.dir.read_json(path)
    commit["files"][file] = commit["files"]["averaged.safetensors"]
    run.dir.write_json(path, commit)
    with pytest.raises(ValueError, match="leads out"):
        run.load("epoch-0001")
    name, skipped = newest_intact(run.dir)
    assert name is None
    assert [s.name for s in skipped] == ["epoch-0001"]


@pytest.mark.parametrize("file", ["../engine-0000.safetensors", "/etc/passwd", 7])
def test_a_training_state_that_names_files_elsewhere_is_refused(
    file: object, tmp_path: Path
) -> None:
    Run(str(tmp_path / "run")).engine.save(tmp_path / "a")
    (tmp_path / "engine-0000.safetensors").write_bytes(
        (tmp_path / "a/engine-0000.safetensors").read_bytes()
    )
    about = json.loads((tmp_path / "a/engine.json").read_text())
    (tmp_path / "a/engine.json").write_text(json.dumps(about | {"files": [file]}))
    with pytest.raises(ValueError, match="names the file"):
        engine_state.SavedState(tmp_path / "a")


def test_big_states_are_written_in_several_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(str(tmp_path))
    monkeypatch.setattr(engine_state, "FILE_BYTES", 30)
    run.save(1, 1.0)
    files = run.dir.names("checkpoints/epoch-0001/engine")
    assert files[:2] == ["engine-0000.safetensors", "engine-0001.safetensors"]
    about = json.loads((tmp_path / "checkpoints/epoch-0001/engine/engine.json").read_text())
    assert about == {"format": 1, "optimizer": "sgd", "files": files[:-1]}
    assert run.load("epoch-0001") == {1.0}
    other = LinearProbe().build(nn.Identity(), 5, 2)
    with pytest.raises(ValueError, match=r"'adamw'; resume with the configuration"):
        LocalEngine(other, TRAIN.model_copy(update={"optimizer": "adamw"}), CPU).load(
            tmp_path / "checkpoints/epoch-0001/engine"
        )
    assert engine_state.named_state(nn.ModuleList([other, other])).keys() == {
        f"0.{name}" for name in other.state_dict()
    }


class TwoRanks:
    """A rank whose peer has this to say."""

    rank, world_size = 1, 2

    def __init__(self, other: str) -> None:
        self.other = torch.zeros(2, 1000, dtype=torch.int32)
        self.other[0, : len(other)] = torch.tensor(list(other.encode()), dtype=torch.int32)

    def all_sum(self, x: Tensor) -> Tensor:
        return x + self.other

    def barrier(self) -> None: ...


def leave(other: str, own: Exception | None) -> None:
    with together(TwoRanks(other), "nothing was saved"):
        if own is not None:
            raise own


def test_all_ranks_hear_of_one_that_could_not_write() -> None:
    for other, own, kind, message in [
        ("s3://b: it is full", None, StorageError, "^nothing was saved; s3://b: it is full$"),
        ("", StorageError("mine"), StorageError, "^nothing was saved; mine$"),
        ("theirs", KeyError("not about files"), KeyError, "not about files"),
    ]:
        with pytest.raises(kind, match=message):
            leave(other, own)
    leave("", None)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 400 kB, which a process of its own has mounted: nothing else sees it."""
    script = f'mount -t tmpfs -o size=400k none "{tmp_path}" && echo ready && exec cat'
    try:
        owner = subprocess.Popen(
            ["unshare", "-rm", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
    except FileNotFoundError:
        pytest.skip("no unshare here")
    with owner:
        assert owner.stdout is not None
        if owner.stdout.readline() != "ready\n":
            pytest.skip("no disks can be mounted here")
        yield Path(f"/proc/{owner.pid}/root{tmp_path}")


def fill(path: Path) -> None:
    with open(path, "wb", buffering=0) as file:
        while True:
            file.write(bytes(512))


def test_a_disk_that_is_full_leaves_the_last_checkpoint(small_disk: Path) -> None:
    run = Run(str(small_disk / "run"))
    run.save(1, 1.0)
    run.dir.append("metrics.jsonl", {"step": 1})
    with pytest.raises(OSError, match="No space left"):
        fill(small_disk / "ballast")
    with pytest.raises(StorageError) as caught:
        run.save(2, 2.0)
    text = str(caught.value)
    assert text.startswith("checkpoint epoch-0002 was not written; ")
    assert "failed, the disk is full (" in text
    assert text.endswith("free some space there, then go on with --resume")
    with pytest.raises(
        StorageError, match=r"metrics.jsonl: writing 9\d\d\d bytes failed, the disk"
    ):
        run.dir.append("metrics.jsonl", {"step": 2, "much": "x" * 9000})
    with pytest.raises(StorageError, match=r"labels.parquet: writing 9000 bytes failed, the disk"):
        run.dir.write_bytes("labels.parquet", bytes(9000))
    assert run.dir.names("checkpoints") == ["epoch-0001"]
    assert not list(small_disk.rglob("*.partial"))
    assert newest_intact(run.dir) == ("epoch-0001", [])
    assert run.load("epoch-0001") == {1.0}
    assert run.dir.read_bytes("metrics.jsonl") == b'{"step": 1}\n'
    (small_disk / "ballast").unlink()
    run.save(2, 2.0)
    assert run.load("epoch-0002") == {2.0}
