"""The split into rows that are scanned and rows that are bounded."""

from __future__ import annotations

import pytest
import torch
from labelmesh.graph_store.thresholds import best_threshold, num_scanned
from torch import Tensor


def draw(seed: int) -> tuple[Tensor, Tensor]:
    """Drifts and limits as they occur: many zeros, ties, closed intervals and infinities."""
    g = torch.Generator().manual_seed(seed)
    n = int(torch.randint(1, 400, (1,), generator=g))
    drift = torch.rand(n, generator=g, dtype=torch.float64).pow(3)
    drift[torch.rand(n, generator=g) < 0.3] = 0.0
    limit = drift + torch.randn(n, generator=g, dtype=torch.float64) * 0.3
    if seed % 2:
        drift, limit = (10 * drift).round() / 10, (10 * limit).round() / 10
    limit[torch.rand(n, generator=g) < 0.1] = torch.inf
    limit[torch.rand(n, generator=g) < 0.1] = -torch.inf
    return drift, limit


@pytest.mark.parametrize("seed", range(20))
def test_no_other_threshold_scans_fewer_rows(seed: int) -> None:
    drift, limit = draw(seed)
    theta = best_threshold(drift, limit)
    assert theta >= 0
    fewest = num_scanned(drift, limit, theta)
    assert fewest <= num_scanned(drift, limit, 0.0)
    others = torch.rand(100, generator=torch.Generator().manual_seed(seed)).tolist()
    ends = [*drift.tolist(), *limit[limit.isfinite() & (limit >= 0)].tolist()]
    for other in [*others, *ends]:
        assert fewest <= num_scanned(drift, limit, other)


def test_it_is_the_least_of_the_best() -> None:
    drift = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    limit = torch.tensor([2.0, 2.0, 4.0], dtype=torch.float64)
    assert best_threshold(drift, limit) == 1.0
    assert num_scanned(drift, limit, 1.0) == 1
    # The interval is open above: at its end the row must be scanned.
    assert num_scanned(drift, limit, 2.0) == 3


def test_without_open_intervals_nothing_is_bounded() -> None:
    drift = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert best_threshold(drift, drift) == 0.0
    assert num_scanned(drift, drift, 0.0) == 2
    assert best_threshold(drift[:0], drift[:0]) == 0.0
