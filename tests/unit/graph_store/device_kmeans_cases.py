"""k-means on rows that are not on the CPU: the same bits, and everything stays where they are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from labelmesh.graph_store.kernels import kmeans_device
from labelmesh.graph_store.solvers import kmeans, match_clusters
from labelmesh.tests.unit.graph_store.other_device import DEVICE, OtherDevice


@pytest.fixture(autouse=True)
def other_device() -> Iterator[None]:
    with OtherDevice():
        yield


@pytest.mark.parametrize(("dtype", "decimals"), [(torch.float32, 0), (torch.float64, 6)])
def test_clusters_are_those_of_the_cpu(
    dtype: torch.dtype, decimals: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kmeans_device, "_BLOCK", 400)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(120, 6, generator=generator, dtype=torch.float64).round(decimals=decimals)
    x = x.to(dtype)
    x[7] = torch.nan
    present = torch.arange(120) != 7
    # The last of the centers to start from is nobody's nearest.
    given = torch.cat([x[:4], torch.full((1, 6), 40.0, dtype=dtype)])
    for init in (None, given):
        here = kmeans(x, 5, seed=3, max_iter=3, num_trials=2, present=present, init=init)
        there = kmeans(
            x.to(DEVICE),
            5,
            seed=3,
            max_iter=3,
            num_trials=2,
            present=present.to(DEVICE),
            init=None if init is None else init.to(DEVICE),
        )
        assert there.labels.device == there.centers.device == DEVICE
        assert torch.equal(there.labels.cpu(), here.labels)
        assert torch.equal(there.centers.cpu(), here.centers)
        assert torch.equal(there.objectives, here.objectives)
    last = torch.arange(120) % 5
    matched = match_clusters(there.labels, last.to(DEVICE), 5)
    assert torch.equal(matched.cpu(), match_clusters(here.labels, last, 5))
