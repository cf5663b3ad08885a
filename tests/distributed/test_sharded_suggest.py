"""Suggestions over 1 to 4 shards against one process.

The shards are threads of this process; they talk over real gloo sockets.
"""

from __future__ import annotations

import pytest
import torch
from labelmesh.graph_store.knn_graph import knn_graph
from labelmesh.graph_store.local_view import LocalGraphView
from labelmesh.graph_store.partition import Partition
from labelmesh.graph_store.sharded_view import ShardedGraphView, ShardGroup
from labelmesh.graph_store.solvers.acquisition import local_max
from labelmesh.graph_store.suggest import CRITERIA, Wanted, suggest_nodes
from labelmesh.tests.distributed.test_sharded_view import run_on_shards
from torch import Tensor

N, K, C, COUNT = 131, 6, 3, 14


@pytest.fixture(scope="module")
def graph() -> LocalGraphView:
    """Clusters with duplicates, two of them far from all others."""
    generator = torch.Generator().manual_seed(5)
    centres = torch.randn(6, 3, generator=generator)
    centres[4:] += 50
    which = torch.arange(N) % 6
    x = centres[which] + 0.7 * torch.randn(N, 3, generator=generator).round()
    return knn_graph(x, k=K).as_view()


@pytest.fixture(scope="module")
def probs() -> Tensor:
    """Many ties, and rows of zeros."""
    counts = torch.randint(4, (N, C), generator=torch.Generator().manual_seed(6)).double()
    return counts / counts.sum(1, keepdim=True).clamp(min=1)


@pytest.fixture(scope="module")
def among() -> Tensor:
    # None of the first rows, which are all that some shard has.
    return (torch.arange(N) > 40) & (torch.arange(N) % 7 > 0)


def part_of(whole: LocalGraphView, group: ShardGroup) -> ShardedGraphView:
    partition = Partition.even(N, group.size)
    rows = slice(*partition.span(group.rank))
    graph = (whole.neighbor_ids[rows], whole.similarity[rows], whole.distances[rows])
    return ShardedGraphView(group, partition, *graph, "euclidean")


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    ("criterion", "balance"), [*((c, False) for c in CRITERIA), ("local_max", True), ("vopt", True)]
)
def test_choice_is_that_of_one_process(
    graph: LocalGraphView,
    probs: Tensor,
    among: Tensor,
    criterion: str,
    balance: bool,
    size: int,
) -> None:
    wanted = Wanted(criterion, "margin", balance, rank=12, seed=3)

    def run(group: ShardGroup) -> tuple[Tensor, Tensor]:
        view = part_of(graph, group)
        own = view.node_ids
        found = suggest_nodes(view, probs[own], among=among[own], count=COUNT, wanted=wanted)
        return found.place, found.score

    expected = suggest_nodes(graph, probs, among=among, count=COUNT, wanted=wanted)
    place, score = (torch.cat(parts) for parts in zip(*run_on_shards(size)(run)))
    assert torch.equal(place, expected.place)
    # Sums go shard by shard, and systems are solved to 1e-3.
    torch.testing.assert_close(score, expected.score, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("size", [2, 4])
def test_peaks_are_those_of_one_process(graph: LocalGraphView, probs: Tensor, size: int) -> None:
    score = probs[:, 0]

    def run(group: ShardGroup) -> Tensor:
        view = part_of(graph, group)
        return local_max(view, score[view.node_ids])

    assert torch.equal(torch.cat(run_on_shards(size)(run)), local_max(graph, score))
