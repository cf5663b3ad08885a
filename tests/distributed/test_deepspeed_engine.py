"""DeepSpeed's ranks step as plain torch does, and their states load at any number of ranks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from labelmesh.tests.distributed import engine_ranks
from labelmesh.tests.distributed.engine_ranks import (
    CASES,
    HALF,
    OPTIMIZERS,
    STEPS,
    local_engine,
    state,
    take_steps,
)
from torch import Tensor

cases = pytest.mark.parametrize(("optimizer", "stage"), CASES)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the ranks of `engine_ranks` left behind."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, engine_ranks.__file__, str(folder)]
    subprocess.run(command, check=True, timeout=300)
    return folder


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """To the bit."""
    assert a.keys() == b.keys()
    odd = [n for n in a if not torch.equal(a[n], b[n]) or a[n].dtype != b[n].dtype]
    assert odd == []


def assert_close(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Up to the order in which gradients, and the norm that clips them, are added up.

    Buffers are left out: ranks average their batch norms at the end of a phase, not in the engine.
    """
    names = [n for n in b if "running" not in n and "num_batches" not in n]
    assert [n for n in a if n in b] == list(a)
    for name in names:
        torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-6, msg=name)


@cases
def test_ranks_step_like_one_process(
    optimizer: str, stage: int, ranks: Path, tmp_path: Path
) -> None:
    local = local_engine(optimizer)
    take_steps(local, range(STEPS))
    local.save(tmp_path)
    assert_close(state(ranks / f"{optimizer}-{stage}" / "undisturbed"), state(tmp_path))


@cases
def test_ranks_that_were_interrupted_end_as_if_not(optimizer: str, stage: int, ranks: Path) -> None:
    case = ranks / f"{optimizer}-{stage}"
    assert_same(state(case / "resumed"), state(case / "undisturbed"))
    names = state(case / "saved").keys()
    frozen = optimizer == "adamw"
    assert ("optimizer/body.0.weight/exp_avg" in names) is False
    assert ("optimizer/body.0.weight/momentum_buffer" in names) is not frozen
    keys = ("exp_avg", "exp_avg_sq", "step") if frozen else ("momentum_buffer",)
    assert all(f"optimizer/classifier.bias/{key}" in names for key in keys)
    assert not any(n.startswith("optimizer/") for n in state(case / "empty"))


@cases
def test_state_loads_at_any_number_of_ranks(
    optimizer: str, stage: int, ranks: Path, tmp_path: Path
) -> None:
    case = ranks / f"{optimizer}-{stage}"
    assert_same(state(case / "at_4"), state(case / "saved"))
    assert_same(state(case / "from_local"), state(ranks / "local" / optimizer))
    local = local_engine(optimizer)
    local.load(case / "saved")
    local.save(tmp_path / "at_1")
    assert_same(state(tmp_path / "at_1"), state(case / "saved"))
    take_steps(local, range(HALF, STEPS))
    local.save(tmp_path / "finished")
    assert_close(state(tmp_path / "finished"), state(case / "undisturbed"))
    assert_close(state(case / "finished_at_4"), state(case / "undisturbed"))


def test_bf16_keeps_float32_weights_near_the_float32_run(ranks: Path) -> None:
    bf16, plain = state(ranks / "bf16"), state(ranks / "sgd-0" / "undisturbed")
    for name, expected in plain.items():
        assert bf16[name].dtype == expected.dtype
        torch.testing.assert_close(bf16[name], expected, rtol=0.1, atol=0.03)
    assert any(not torch.equal(bf16[n], plain[n]) for n in plain)


def test_compiled_ranks_step_like_plain_ones_and_keep_their_names(ranks: Path) -> None:
    assert_same(state(ranks / "compiled"), state(ranks / "sgd-0" / "undisturbed"))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_process_that_was_interrupted_ends_as_if_not(optimizer: str, tmp_path: Path) -> None:
    whole, first, second = (local_engine(optimizer) for _ in range(3))
    take_steps(whole, range(STEPS))
    take_steps(first, range(HALF))
    first.save(tmp_path / "saved")
    second.load(tmp_path / "saved")
    take_steps(second, range(HALF, STEPS))
    for name, engine in (("whole", whole), ("second", second)):
        engine.save(tmp_path / name)
    assert_same(state(tmp_path / "second"), state(tmp_path / "whole"))
