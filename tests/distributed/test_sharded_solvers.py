"""Solvers over 1 to 4 shards against one process: the same groups, the same numbers.

The shards are threads of this process; they talk over real gloo sockets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from labelmesh.graph_store.knn_graph import KnnGraph, knn_graph
from labelmesh.graph_store.partition import Partition
from labelmesh.graph_store.sharded_view import ShardedGraphView, ShardGroup
from labelmesh.graph_store.solvers import laplace, local_global, poisson
from labelmesh.graph_store.solvers.aggregation import aggregates
from labelmesh.graph_store.solvers.components import components
from labelmesh.graph_store.view import Affinity
from labelmesh.tests.distributed.test_sharded_view import run_on_shards
from torch import Tensor

N, K, C = 2300, 6, 3  # large enough for a coarse level


@pytest.fixture(scope="module")
def graph() -> KnnGraph:
    """Clusters in several components."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(12, 5, generator=generator) * 4
    which = torch.randint(0, 12, (N,), generator=generator)
    return knn_graph(centres[which] + torch.randn(N, 5, generator=generator), k=K)


@pytest.fixture(scope="module")
def labels() -> Tensor:
    given = torch.full((N,), -1)
    given[::115] = torch.arange(20) % C
    return given


def on_shards(
    size: int, graph: KnnGraph, solve: Callable[[Affinity, slice], Tensor]
) -> list[Tensor]:
    def run(group: ShardGroup) -> Tensor:
        partition = Partition.even(N, size)
        rows = slice(*partition.span(group.rank))
        distances = graph.distances[rows]
        view = ShardedGraphView(
            group, partition, graph.ids[rows], 1 - distances.square() / 2, distances, "euclidean"
        )
        return solve(view.affinity("self_tuning"), rows)

    return run_on_shards(size)(run)


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_components_and_groups_are_those_of_one_process(size: int, graph: KnnGraph) -> None:
    w = graph.affinity("self_tuning")
    found = on_shards(
        size, graph, lambda v, _: torch.stack([components(v), aggregates(v, 40)], dim=1)
    )
    expected = torch.stack([components(w), aggregates(w, 40)], dim=1)
    assert torch.equal(torch.cat(found), expected)
    assert len(expected[:, 0].unique()) > 1


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("solver", "options"),
    [
        (laplace, {"on_unreached": "uniform"}),
        (laplace, {"tau": 0.1, "fidelity": 2.0}),
        (poisson, {}),
        (local_global, {"tol": 1e-10, "balance_classes": True}),
    ],
)
def test_solutions_are_those_of_one_process(
    size: int, graph: KnnGraph, labels: Tensor, solver: Any, options: dict[str, Any]
) -> None:
    expected = solver(graph.affinity("self_tuning"), labels, num_classes=C, **options)
    start = expected + 0.1

    def cold(w: Affinity, rows: slice) -> Tensor:
        out: Tensor = solver(w, labels[rows], num_classes=C, **options)
        return out

    def warm(w: Affinity, rows: slice) -> Tensor:
        out: Tensor = solver(w, labels[rows], num_classes=C, x0=start[rows], **options)
        return out

    scale = float(expected.abs().max())
    for solve in (cold, warm):
        found = torch.cat(on_shards(size, graph, solve))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * scale)


def test_unreached_nodes_are_counted_over_all_shards(graph: KnnGraph) -> None:
    given = torch.full((N,), -1)
    given[0] = 0
    missing = int((components(graph.affinity("self_tuning")) != 0).sum())
    with pytest.raises(ValueError, match=f"{missing} nodes are connected to no labeled node"):
        on_shards(2, graph, lambda w, rows: laplace(w, given[rows], num_classes=1))
