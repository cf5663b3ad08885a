"""Learning rates, rounds and seeds are plain functions."""

from __future__ import annotations

import math

import pytest
from labelmesh.trainers.config import TrainSpec
from labelmesh.trainers.rounds import RoundSchedule
from labelmesh.trainers.schedule import learning_rate
from labelmesh.trainers.seeds import derive_seed


def test_cosine_is_whole_at_the_start_half_in_the_middle_zero_at_the_end() -> None:
    spec = TrainSpec(epochs=10, lr=0.4)
    rates = [learning_rate(spec, epoch=e, step=0) for e in (0.0, 5.0, 10.0)]
    assert rates == pytest.approx([0.4, 0.2, 0.0])


def test_cosine_end_beyond_the_last_epoch_leaves_a_rate() -> None:
    spec = TrainSpec(epochs=400, lr=0.03, cosine_end=460)
    expected = 0.015 * (1 + math.cos(math.pi * 400 / 460))
    assert learning_rate(spec, epoch=400.0, step=0) == pytest.approx(expected)


def test_steps_multiply() -> None:
    spec = TrainSpec(epochs=400, lr=0.1, schedule="step", step_epochs=(250, 350))
    rates = [learning_rate(spec, epoch=e, step=0) for e in (249.9, 250.0, 350.0)]
    assert rates == pytest.approx([0.1, 0.01, 0.001])


def test_warm_up_rises_linearly() -> None:
    spec = TrainSpec(epochs=1, lr=1.0, schedule="constant", lr_warmup_steps=4)
    rates = [learning_rate(spec, epoch=0.0, step=s) for s in range(5)]
    assert rates == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])


def test_rounds_come_every_second_epoch_and_once_at_the_end() -> None:
    schedule = RoundSchedule(every_epochs=2, epochs=5)
    assert [schedule.due(e) for e in range(5)] == [0, None, 1, None, 2]
    assert [schedule.readable(e) for e in range(5)] == [0, 0, 1, 1, 2]
    assert schedule.final == 3


def test_seeds_differ_by_every_part_of_the_path() -> None:
    seeds = {derive_seed(0, "a", 1), derive_seed(1, "a", 1), derive_seed(0, "b", 1)}
    seeds |= {derive_seed(0, "a", 2), derive_seed(0, "a"), derive_seed(0, "a", 11)}
    assert len(seeds) == 6
    assert all(0 <= s < 2**63 for s in seeds)
