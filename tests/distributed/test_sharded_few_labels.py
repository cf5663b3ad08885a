"""Solvers for few labels over 1 to 4 shards against one process.

The shards are threads of this process; they talk over real gloo sockets.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from labelmesh.graph_store.knn_graph import knn_graph
from labelmesh.graph_store.local_view import LocalGraphView
from labelmesh.graph_store.partition import Partition
from labelmesh.graph_store.sharded_view import ShardedGraphView, ShardGroup
from labelmesh.graph_store.solvers import (
    class_prior_projection,
    nearest_labeled,
    p_laplace,
    poisson_mbo,
    random_walk,
    reweighted_laplace,
)
from labelmesh.graph_store.solvers.reweighted import Reweighting
from labelmesh.graph_store.view import Affinity
from labelmesh.tests.distributed.test_sharded_view import run_on_shards
from torch import Tensor

N, K, C = 131, 6, 3
PRIORS = torch.tensor([0.5, 0.3, 0.2])
Solve = Callable[[Affinity, Tensor], Tensor]


@pytest.fixture(scope="module")
def graph() -> LocalGraphView:
    """Clusters with duplicates, two of them far from all others."""
    generator = torch.Generator().manual_seed(2)
    centres = torch.randn(6, 3, generator=generator)
    centres[4:] += 50
    which = torch.arange(N) % 6
    x = centres[which] + 0.7 * torch.randn(N, 3, generator=generator).round()
    found = knn_graph(x, k=K)
    return LocalGraphView(found.ids, 1 - found.distances.square() / 2, found.distances, "euclidean")


@pytest.fixture(scope="module")
def labels() -> Tensor:
    given = torch.full((N,), -1)
    given[[0, 40, 80, 103, 125]] = torch.tensor([0, 1, 2, 0, 1])
    return given


def scores_under_priors(w: Affinity, labels: Tensor) -> Tensor:
    scores = random_walk(w, labels, 0.5, num_classes=C, tol=1e-4)
    return class_prior_projection(scores, labels, PRIORS, all_sum=w.all_sum).scores  # type: ignore[no-any-return]


def reweighted(kind: Reweighting) -> Solve:
    def solve(w: Affinity, labels: Tensor) -> Tensor:
        u: Tensor = reweighted_laplace(
            w, labels, kind, num_classes=C, tol=1e-3, on_unreached="uniform"
        )
        return u

    return solve


# Loose tolerances: both sides stop after the same steps, wherever that is.
SOLVERS: dict[str, Solve] = {
    "poisson": reweighted("poisson"),
    "properly": reweighted("properly"),
    "mbo": lambda w, y: poisson_mbo(w, y, PRIORS, num_classes=C, inner_steps=4, outer_steps=3),
    "p_laplace": lambda w, y: p_laplace(w, y, 3.0, 0.1, num_classes=C, tol=1e-3),
    "nearest": lambda w, y: nearest_labeled(w, y, num_classes=C),
    "random_walk": scores_under_priors,
}


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_solutions_are_those_of_one_process(
    size: int, graph: LocalGraphView, labels: Tensor
) -> None:
    def run(group: ShardGroup) -> dict[str, Tensor]:
        partition = Partition.even(N, size)
        rows = slice(*partition.span(group.rank))
        own = (graph.neighbor_ids[rows], graph.similarity[rows], graph.distances[rows])
        view = ShardedGraphView(group, partition, *own, "euclidean")
        w = view.affinity("self_tuning")
        return {name: solve(w, labels[rows]) for name, solve in SOLVERS.items()}

    parts = run_on_shards(size)(run)
    w = graph.affinity("self_tuning")
    for name, solve in SOLVERS.items():
        found, expected = torch.cat([part[name] for part in parts]), solve(w, labels)
        # Sums over shards differ in their last bits.
        torch.testing.assert_close(
            found, expected, rtol=0, atol=1e-7, msg=lambda text, name=name: f"{name}: {text}"
        )
