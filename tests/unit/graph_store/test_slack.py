"""How long lists are made."""

from __future__ import annotations

import pytest
import torch
from labelmesh.graph_store.kernels.knn import knn_self_join
from labelmesh.graph_store.kernels.scaling import Frame
from labelmesh.graph_store.partition import Partition
from labelmesh.graph_store.peers import Peers
from labelmesh.graph_store.slack import CERTIFIED_SHARE, DRIFTS, choose_slack, default_slack

N, K = 220, 5
SIZES = (2 * K + 2, 3 * K + 3, 4 * K + 4, 6 * K + 4, 8 * K)


def choose(drift: float, num_active: int = N, dim: int = 3) -> int:
    x = torch.randn(N, dim, generator=torch.Generator().manual_seed(1))
    active = torch.arange(N) < num_active
    frame = Frame(1.0, torch.zeros(dim), is_product=False)
    return choose_slack(Peers(Partition.even(N, 1)), x, active, frame, K, drift, num_active)


def test_default_has_room_for_the_loss_of_some_neighbours() -> None:
    assert [default_slack(k) for k in (1, 3, 4, 15)] == [8, 8, 10, 32]


def test_the_least_size_that_certifies_is_chosen() -> None:
    x = torch.randn(N, 3, generator=torch.Generator().manual_seed(1))
    profile = knn_self_join(x, 8 * K + 1)[1]
    for drift in (0.0, 0.02, 0.05, 0.1, 0.15):
        gap = profile - profile[:, K - 1 : K]
        share = [float((gap[:, s] > DRIFTS * drift).double().mean()) for s in SIZES]
        good = [size for size, part in zip(SIZES, share) if part >= CERTIFIED_SHARE]
        assert choose(drift) == (good[0] if good else K + 8)


def test_lists_grow_with_the_drift_until_they_are_not_worth_it() -> None:
    found = [choose(drift) for drift in (0.0, 0.03, 0.06, 0.1, 10.0)]
    assert found[:-1] == sorted(found[:-1])
    assert found[0] == SIZES[0]
    assert found[-1] == K + 8


@pytest.mark.parametrize("num_active", [0, 1, 2, K, K + 1, 12])
def test_few_rows(num_active: int) -> None:
    assert choose(0.1, num_active) >= default_slack(1)
