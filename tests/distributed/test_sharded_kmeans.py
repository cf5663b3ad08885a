"""k-means over 1 to 4 shards against one process, to the last bit.

The shards are threads of this process; they talk over real gloo sockets.
"""

from __future__ import annotations

import pytest
import torch
from labelmesh.graph_store.partition import Partition
from labelmesh.graph_store.sharded_view import ShardGroup, sum_over_shards
from labelmesh.graph_store.solvers import KMeans, kmeans, match_clusters
from labelmesh.tests.distributed.test_sharded_view import run_on_shards
from torch import Tensor

N, K = 157, 9


@pytest.fixture(scope="module")
def features() -> Tensor:
    """Clusters with duplicates."""
    generator = torch.Generator().manual_seed(4)
    centers = torch.randn(6, 5, generator=generator)
    return centers[torch.arange(N) % 6] + torch.randn(N, 5, generator=generator).round() * 0.3


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_clusters_are_those_of_one_process(size: int, features: Tensor) -> None:
    present = torch.arange(N) % 23 != 5
    # Two of the centers to start from are nobody's nearest.
    far = torch.cat([features[:7], torch.full((2, 5), 30.0)])

    def run(group: ShardGroup) -> list[tuple[KMeans, Tensor]]:
        own = torch.arange(*Partition.even(N, size).span(group.rank))

        def all_sum(x: Tensor) -> Tensor:
            return sum_over_shards(group, x)

        def all_max(x: Tensor) -> Tensor:
            return torch.stack(group.all_gather(x)).amax(0)

        out, last = [], own % K
        for init in (None, far):
            found = kmeans(
                features[own],
                K,
                seed=6,
                node_ids=own,
                present=present[own],
                all_sum=all_sum,
                all_max=all_max,
                init=init,
            )
            last = match_clusters(found.labels, last, K, all_sum=all_sum)
            out.append((found, last))
        return out

    parts = run_on_shards(size)(run)
    last = torch.arange(N) % K
    for at, init in enumerate((None, far)):
        whole = kmeans(features, K, seed=6, present=present, init=init)
        last = match_clusters(whole.labels, last, K)
        assert whole.converged
        for found, _ in (part[at] for part in parts):
            assert torch.equal(found.centers, whole.centers)
            assert torch.equal(found.objectives, whole.objectives)
            assert found.iterations == whole.iterations
        assert torch.equal(torch.cat([part[at][0].labels for part in parts]), whole.labels)
        assert torch.equal(torch.cat([part[at][1] for part in parts]), last)
