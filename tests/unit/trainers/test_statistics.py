"""Running statistics do not depend on how micro-batches are spread over ranks."""

from __future__ import annotations

import torch
from labelmesh.trainers.statistics import StepStatistics, average_over_ranks
from torch import nn


class TwoRanks:
    """A communicator whose other rank holds `other`."""

    rank, world_size = 0, 2

    def __init__(self, other: torch.Tensor) -> None:
        self._other = other

    def all_sum(self, x: torch.Tensor) -> torch.Tensor:
        return x + self._other

    def barrier(self) -> None:
        return None


def micro_batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(8, 3, generator=generator) * (i + 1) for i in range(4)]


def test_two_micro_batches_on_one_rank_equal_one_on_each_of_two() -> None:
    data = micro_batches()
    together = nn.BatchNorm1d(3)
    statistics = StepStatistics(together, 2)
    for step in (0, 2):
        statistics.before_step()
        for i in range(2):
            together(data[step + i])
            statistics.after_micro_batch(i)
    apart = [nn.BatchNorm1d(3), nn.BatchNorm1d(3)]
    for i, norm in enumerate(apart):
        norm(data[i])
        norm(data[2 + i])
    other = torch.cat([apart[1].running_mean, apart[1].running_var])
    average_over_ranks(apart[0], TwoRanks(other))
    torch.testing.assert_close(apart[0].running_mean, together.running_mean)
    torch.testing.assert_close(apart[0].running_var, together.running_var)
    assert together.num_batches_tracked == apart[0].num_batches_tracked == 2


def test_single_micro_batch_is_left_alone() -> None:
    norm, plain = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    statistics = StepStatistics(norm, 1)
    statistics.before_step()
    norm(micro_batches()[0])
    statistics.after_micro_batch(0)
    plain(micro_batches()[0])
    assert torch.equal(norm.running_mean, plain.running_mean)
