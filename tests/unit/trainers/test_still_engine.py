"""The engine of a network in which there is nothing to train."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from labelmesh.trainers.config import TrainSpec
from labelmesh.trainers.engine import Engine, LocalComm, LocalEngine
from labelmesh.trainers.methods.knn import Knn
from labelmesh.trainers.methods.linear_probe import LinearProbe
from labelmesh.trainers.still_engine import StillEngine, has_nothing_to_train
from labelmesh.trainers.worker import local_engine
from torch import nn

CPU = torch.device("cpu")
TRAIN = TrainSpec(epochs=1)


def test_only_a_network_without_trained_parameters_stands_still() -> None:
    vote = Knn().build(nn.Identity(), 3, 2)
    probe = LinearProbe().build(nn.Identity(), 3, 2)
    assert isinstance(local_engine(vote, TRAIN, CPU), StillEngine)
    assert isinstance(local_engine(probe, TRAIN, CPU), LocalEngine)
    assert has_nothing_to_train(probe.requires_grad_(False))


def test_it_answers_without_gradients_and_refuses_steps() -> None:
    engine = StillEngine(LinearProbe().build(nn.Identity(), 3, 2), CPU, LocalComm())
    assert isinstance(engine, Engine)
    out = engine(torch.ones(2, 3))
    assert out.logits.shape == (2, 2)
    assert not out.logits.requires_grad
    with engine.gathered(), pytest.raises(ValueError, match="a step was asked for"):
        engine.micro_step(out.logits.sum(), lr=0.1, last=True)


def test_a_checkpoint_holds_the_network(tmp_path: Path) -> None:
    def engine(seed: int) -> StillEngine:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return StillEngine(LinearProbe().build(nn.Identity(), 3, 2), CPU, LocalComm())

    saved, loaded = engine(0), engine(1)
    saved.save(tmp_path / "engine")
    loaded.load(tmp_path / "engine")
    x = torch.ones(2, 3)
    assert torch.equal(saved.network.eval()(x).logits, loaded.network.eval()(x).logits)
    again = StillEngine(Knn().build(nn.Identity(), 3, 2), CPU, LocalComm())
    again.save(tmp_path / "vote")
    again.load(tmp_path / "vote")
