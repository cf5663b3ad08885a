"""DeepSpeed on two ranks takes the steps that plain torch takes in one process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from labelmesh.graph_store.view import Neighborhood
from labelmesh.trainers.config import TrainSpec
from labelmesh.trainers.engine import Engine, LocalEngine
from labelmesh.trainers.method import Network
from labelmesh.trainers.still_engine import StillEngine
from torch import Tensor, nn

STEPS = 4
STAGES = (0, 1, 2, 3)


class TinyNetwork(Network):
    feature_dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh())
        self.classifier = nn.Linear(6, 3)

    def features(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.body(inputs)
        return out

    def head(self, features: Tensor, neighborhood: Neighborhood | None) -> Tensor:
        out: Tensor = self.classifier(features)
        return out


def network() -> TinyNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TinyNetwork()


def spec(**changes: object) -> TrainSpec:
    base = {"epochs": 1, "batch_size": 8, "labeled_per_batch": 2, "micro_batches": 2, "lr": 0.1}
    return TrainSpec(**{**base, "grad_clip": 0.5, **changes})  # type: ignore[arg-type]


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(STEPS, 2, 4, 5, generator=generator)
    return inputs, torch.randint(3, (STEPS, 2, 4), generator=generator)


def take_steps(engine: Engine, steps: range, mine: list[int]) -> None:
    inputs, labels = data()
    for step in steps:
        for i in mine:
            logits = engine(inputs[step, i]).logits
            loss = nn.functional.cross_entropy(logits, labels[step, i])
            engine.micro_step(loss, lr=0.1 / (step + 1), last=i == mine[-1])


def worker(rank: int, port: int, folder: str) -> None:
    """One rank: trains, saves, resumes, once per ZeRO stage."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE="2",
        DS_ACCELERATOR="cpu",
    )
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for stage in STAGES:
        one_stage(rank, stage, Path(folder, str(stage)))
    bf16_step(rank, Path(folder, "bf16.pt"))
    still_network(rank)
    compiled_steps(rank, Path(folder, "compiled.pt"))
    dist.barrier()
    dist.destroy_process_group()


def one_stage(rank: int, stage: int, folder: Path) -> None:
    from labelmesh.trainers.deepspeed_engine import DeepSpeedEngine

    train = spec(num_workers=2, deepspeed={"zero_optimization": {"stage": stage}})
    cpu = torch.device("cpu")
    engine = DeepSpeedEngine(network(), train, cpu)
    take_steps(engine, range(2), [rank])
    engine.save(folder / "saved")
    engine.comm.barrier()
    resumed = DeepSpeedEngine(network(), train, cpu)
    resumed.load(folder / "saved")
    for name, one in (("undisturbed", engine), ("resumed", resumed)):
        take_steps(one, range(2, STEPS), [rank])
        with one.gathered():
            if rank == 0:
                torch.save(one.network.state_dict(), folder / f"{name}.pt")


def still_network(rank: int) -> None:
    """A network without anything to train gets an engine that only carries it."""
    from labelmesh.trainers.deepspeed_engine import deepspeed_engine

    cpu = torch.device("cpu")
    engine = deepspeed_engine(network().requires_grad_(False), spec(num_workers=2), cpu)
    assert isinstance(engine, StillEngine)
    assert engine.comm.all_sum(torch.tensor(rank + 1)).item() == 3
    moving = deepspeed_engine(network(), spec(num_workers=2), cpu)
    assert not isinstance(moving, StillEngine)


def bf16_step(rank: int, path: Path) -> None:
    from labelmesh.trainers.deepspeed_engine import DeepSpeedEngine

    cpu = torch.device("cpu")
    engine = DeepSpeedEngine(network(), spec(num_workers=2, precision="bf16"), cpu)
    take_steps(engine, range(STEPS), [rank])
    if rank == 0:
        torch.save(engine.network.state_dict(), path)


def compiled_steps(rank: int, path: Path) -> None:
    from labelmesh.trainers import deepspeed_engine

    # Traced and run by torch itself: a real compiler takes half a minute to start.
    deepspeed_engine.COMPILER = "eager"
    deepspeed_engine.check_compiler = lambda device: None
    train = spec(num_workers=2, compile=True)
    engine = deepspeed_engine.DeepSpeedEngine(network(), train, torch.device("cpu"))
    take_steps(engine, range(STEPS), [rank])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    if rank == 0:
        torch.save(engine.network.state_dict(), path)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two DeepSpeed ranks left their networks, by stage."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Processes of their own: a forked one would share this one's threads, and pytest's modules
    # cannot be imported by name.
    command = [sys.executable, __file__, str(port), str(folder)]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(2)]
    assert [rank.wait(timeout=300) for rank in ranks] == [0, 0]
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_step_like_one_process_and_resume_exactly(stage: int, two_ranks: Path) -> None:
    local = LocalEngine(network(), spec(), torch.device("cpu"))
    take_steps(local, range(STEPS), [0, 1])
    undisturbed = torch.load(two_ranks / str(stage) / "undisturbed.pt", weights_only=True)
    resumed = torch.load(two_ranks / str(stage) / "resumed.pt", weights_only=True)
    for name, expected in local.network.named_parameters():
        # Sums of two gradients; clipping's norm is added up in another order.
        torch.testing.assert_close(undisturbed[name], expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(undisturbed[name], resumed[name]), name


def test_bf16_keeps_float32_weights_near_the_float32_run(two_ranks: Path) -> None:
    bf16 = torch.load(two_ranks / "bf16.pt", weights_only=True)
    plain = torch.load(two_ranks / "0" / "undisturbed.pt", weights_only=True)
    for name, expected in plain.items():
        assert bf16[name].dtype == expected.dtype
        torch.testing.assert_close(bf16[name], expected, rtol=0.1, atol=0.03)
    assert any(not torch.equal(bf16[n], plain[n]) for n in plain)


def test_compiled_ranks_step_like_plain_ones_and_keep_their_keys(two_ranks: Path) -> None:
    compiled = torch.load(two_ranks / "compiled.pt", weights_only=True)
    plain = torch.load(two_ranks / "0" / "undisturbed.pt", weights_only=True)
    assert list(compiled) == list(plain)
    assert all(torch.equal(compiled[name], plain[name]) for name in plain)


def test_local_engine_resumes_exactly(tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    whole = LocalEngine(network(), spec(), cpu)
    take_steps(whole, range(STEPS), [0, 1])
    first = LocalEngine(network(), spec(), cpu)
    take_steps(first, range(2), [0, 1])
    first.save(tmp_path)
    second = LocalEngine(network(), spec(), cpu)
    second.load(tmp_path)
    take_steps(second, range(2, STEPS), [0, 1])
    for a, b in zip(whole.network.parameters(), second.network.parameters()):
        assert torch.equal(a, b)


if __name__ == "__main__":
    worker(int(sys.argv[3]), int(sys.argv[1]), sys.argv[2])
