"""Ranks that train a small network on DeepSpeed and leave their training states in a folder.

Run as a program: pytest's own process has threads, so it cannot be forked, and this one pays once
for its imports. Per case of `CASES`, below `<folder>/<case>`:

    empty, saved, undisturbed   at two ranks: before any step, after two steps, after four
    resumed                     the same, interrupted after two steps
    from_local                  what two ranks hold once they have loaded `local/<optimizer>`
    at_4, finished_at_4         what four ranks hold once they have loaded `saved`, and two steps on
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from labelmesh.graph_store.view import Neighborhood
from labelmesh.trainers import deepspeed_engine
from labelmesh.trainers.config import TrainSpec
from labelmesh.trainers.deepspeed_engine import DeepSpeedEngine
from labelmesh.trainers.engine import Engine, LocalEngine
from labelmesh.trainers.engine_state import SavedState
from labelmesh.trainers.method import Network
from labelmesh.trainers.still_engine import StillEngine
from torch import Tensor, nn

STEPS, HALF = 4, 2
MICRO_BATCHES = 4
STAGES = (0, 1, 2, 3)
OPTIMIZERS = ("sgd", "adamw")
CASES = tuple((optimizer, stage) for optimizer in OPTIMIZERS for stage in STAGES)
CPU = torch.device("cpu")


class TinyNetwork(Network):
    """No size is a multiple of the number of ranks; `frozen`: all before the batch norm is."""

    feature_dim = 7

    def __init__(self, *, frozen: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.Tanh())
        self.classifier = nn.Linear(7, 3)
        self.body[0].requires_grad_(not frozen)

    def features(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.body(inputs)
        return out

    def head(self, features: Tensor, neighborhood: Neighborhood | None) -> Tensor:
        out: Tensor = self.classifier(features)
        return out


def network(optimizer: str = "sgd") -> TinyNetwork:
    """The start of every run. With AdamW the part before the batch norm is frozen: the gradient of
    its bias is nothing but rounding, which Adam would blow up."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TinyNetwork(frozen=optimizer == "adamw")


def spec(**changes: object) -> TrainSpec:
    base = {"epochs": 1, "batch_size": 16, "labeled_per_batch": 4, "lr": 0.1, "grad_clip": 0.5}
    return TrainSpec(**{**base, "micro_batches": MICRO_BATCHES, **changes})  # type: ignore[arg-type]


def take_steps(engine: Engine, steps: range) -> None:
    """Steps on data that is a function of the step and the micro-batch alone."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(STEPS, MICRO_BATCHES, 4, 5, generator=generator)
    labels = torch.randint(3, (STEPS, MICRO_BATCHES, 4), generator=generator)
    share = MICRO_BATCHES // engine.comm.world_size
    mine = range(engine.comm.rank * share, (engine.comm.rank + 1) * share)
    for step in steps:
        for i in mine:
            logits = engine(inputs[step, i]).logits
            loss = nn.functional.cross_entropy(logits, labels[step, i])
            engine.micro_step(loss, lr=0.1 / (step + 1), last=i == mine[-1])


def state(folder: Path) -> dict[str, Tensor]:
    return dict(SavedState(folder))


def local_engine(optimizer: str) -> LocalEngine:
    return LocalEngine(network(optimizer), spec(optimizer=optimizer), CPU)


def ranks_engine(optimizer: str, stage: int) -> DeepSpeedEngine:
    zero: dict[str, object] = {"stage": stage}
    if (optimizer, stage) == ("adamw", 3):
        zero["stage3_param_persistence_threshold"] = 0  # else all these parameters stay whole
    train = spec(
        optimizer=optimizer,
        num_workers=dist.get_world_size(),
        deepspeed={"zero_optimization": zero},
    )
    return DeepSpeedEngine(network(optimizer), train, CPU)


def two_ranks(folder: Path) -> None:
    for optimizer in OPTIMIZERS:
        local = local_engine(optimizer)
        take_steps(local, range(HALF))
        if dist.get_rank() == 0:
            local.save(folder / "local" / optimizer)
        dist.barrier()
    for optimizer, stage in CASES:
        _interrupted_and_not(optimizer, stage, folder)
    bf16_steps(folder)
    still_network(dist.get_rank())
    compiled_steps(folder)


def _interrupted_and_not(optimizer: str, stage: int, folder: Path) -> None:
    case = folder / f"{optimizer}-{stage}"
    engine, resumed = ranks_engine(optimizer, stage), ranks_engine(optimizer, stage)
    engine.save(case / "empty")
    dist.barrier()
    engine.load(case / "empty")
    take_steps(engine, range(HALF))
    engine.save(case / "saved")
    dist.barrier()
    resumed.load(folder / "local" / optimizer)
    resumed.save(case / "from_local")
    resumed.load(case / "saved")
    for name, one in (("undisturbed", engine), ("resumed", resumed)):
        take_steps(one, range(HALF, STEPS))
        one.save(case / name)


def four_ranks(folder: Path) -> None:
    for optimizer, stage in CASES:
        case = folder / f"{optimizer}-{stage}"
        engine = ranks_engine(optimizer, stage)
        engine.load(case / "saved")
        engine.save(case / "at_4")
        take_steps(engine, range(HALF, STEPS))
        engine.save(case / "finished_at_4")


def bf16_steps(folder: Path) -> None:
    engine = DeepSpeedEngine(network(), spec(num_workers=2, precision="bf16"), CPU)
    take_steps(engine, range(STEPS))
    engine.save(folder / "bf16")


def still_network(rank: int) -> None:
    """A network without anything to train gets an engine that only carries it."""
    still = network().requires_grad_(False)
    engine = deepspeed_engine.deepspeed_engine(still, spec(num_workers=2), CPU)
    assert isinstance(engine, StillEngine)
    assert engine.comm.all_sum(torch.tensor(rank + 1)).item() == 3
    moving = deepspeed_engine.deepspeed_engine(network(), spec(num_workers=2), CPU)
    assert not isinstance(moving, StillEngine)


def compiled_steps(folder: Path) -> None:
    # Traced and run by torch itself: a real compiler takes half a minute to start.
    deepspeed_engine.COMPILER = "eager"
    deepspeed_engine.check_compiler = lambda device: None
    engine = DeepSpeedEngine(network(), spec(num_workers=2, compile=True), CPU)
    take_steps(engine, range(STEPS))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    engine.save(folder / "compiled")


def _run_ranks(world_size: int, folder: Path) -> None:
    """Fork that many ranks and wait for them."""
    pids = []
    for rank in range(world_size):
        if (pid := os.fork()) != 0:
            pids.append(pid)
            continue
        try:
            _run_rank(rank, world_size, folder)
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    if any([os.waitpid(pid, 0)[1] for pid in pids]):
        sys.exit(f"one of {world_size} ranks failed")


def _run_rank(rank: int, world_size: int, folder: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size))
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting-{world_size}"
    dist.init_process_group("gloo", meeting, rank=rank, world_size=world_size)
    (two_ranks if world_size == 2 else four_ranks)(folder)
    from deepspeed.comm import comm

    assert comm.cdb.shm_comm_op is None  # nothing was compiled
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ["DS_ACCELERATOR"] = "cpu"
    # Before the ranks part, for what takes seconds to import: they share it.
    importlib.import_module("deepspeed.runtime.zero.muon.original_muon")
    for size in (2, 4):
        _run_ranks(size, Path(sys.argv[1]))
