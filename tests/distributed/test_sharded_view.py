"""A graph over 1 to 4 shards against the graph of one process.

The shards are threads of this process; they talk over real gloo sockets.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import pytest
import torch
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.kernels.knn import knn_self_join
from labelmesh.graph_store.kernels.rows import prepare_rows, similarity_from_distance
from labelmesh.graph_store.local_view import LocalGraphView
from labelmesh.graph_store.partition import Partition
from labelmesh.graph_store.sharded_affinity import ShardedAffinity
from labelmesh.graph_store.sharded_knn import knn_over_shards
from labelmesh.graph_store.sharded_view import PeerLostError, ShardedGraphView, ShardGroup
from labelmesh.graph_store.solvers import density_paths, local_global
from torch import Tensor

T = TypeVar("T")
Shards = Callable[[Callable[[ShardGroup], T]], list[T]]
N, K, C = 203, 7, 4


@pytest.fixture(params=[1, 2, 3, 4])
def shards(request: pytest.FixtureRequest) -> Shards[Any]:
    """Runs a function on every shard and gives the results in shard order."""
    return run_on_shards(request.param)


def run_on_shards(size: int) -> Shards[Any]:
    def run(function: Callable[[ShardGroup], T]) -> list[T]:
        rendezvous = torch.distributed.HashStore()
        with ThreadPoolExecutor(size) as pool:
            parts = [
                pool.submit(lambda r: function(ShardGroup(r, size, rendezvous)), rank)
                for rank in range(size)
            ]
            wait(parts)
        return [part.result() for part in parts]

    return run


@pytest.fixture(scope="module")
def whole() -> LocalGraphView:
    """A graph with clusters, duplicates, ties and some nodes without edges."""
    generator = torch.Generator().manual_seed(3)
    centres = torch.randn(C, 5, generator=generator) * 2
    x = centres[torch.arange(N) % C] + torch.randn(N, 5, generator=generator).round()
    present = torch.arange(N) % 29 != 11
    ids, distances = knn_self_join(prepare_rows(x[present], "cosine"), K, torch.arange(N)[present])
    neighbor_ids = torch.full((N, K), -1)
    neighbor_ids[present] = ids
    all_distances = torch.full((N, K), torch.inf, dtype=torch.float64)
    all_distances[present] = distances
    similarity = similarity_from_distance(all_distances).float()
    return LocalGraphView(neighbor_ids, similarity, all_distances.float())


def part_of(whole: LocalGraphView, group: ShardGroup) -> ShardedGraphView:
    partition = Partition.even(N, group.size)
    rows = slice(*partition.span(group.rank))
    graph = (whole.neighbor_ids[rows], whole.similarity[rows], whole.distances[rows])
    return ShardedGraphView(group, partition, *graph)


def own(view: ShardedGraphView, column: Tensor) -> Tensor:
    return column[view.node_ids]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool])
def test_gather_gives_rows_by_global_id(
    shards: Shards[Tensor], whole: LocalGraphView, dtype: torch.dtype
) -> None:
    column = (torch.arange(N * 3).reshape(N, 3) % 7).to(dtype)

    def run(group: ShardGroup) -> Tensor:
        view = part_of(whole, group)
        ids = torch.randint(N, (50 * group.rank,), generator=torch.Generator().manual_seed(1))
        got = view.gather(own(view, column), ids)
        assert torch.equal(got, column[ids])
        return view.gather(own(view, column[:, 0]), ids.flip(0))

    for rank, got in enumerate(shards(run)):
        assert got.shape == (50 * rank,)


@pytest.mark.parametrize("reduce", ["sum", "amax"])
@pytest.mark.parametrize("shape", [(), (3,)])
def test_scatter_has_the_bits_of_one_process(
    shards: Shards[Tensor], whole: LocalGraphView, reduce: Any, shape: tuple[int, ...]
) -> None:
    # One value per edge, sent to the neighbour: hubs add up many of them.
    has = whole.neighbor_ids >= 0
    values = torch.rand(N, K, *shape, generator=torch.Generator().manual_seed(2))
    start = torch.rand(N, *shape, generator=torch.Generator().manual_seed(3))

    def run(group: ShardGroup) -> Tensor:
        view = part_of(whole, group)
        exists = own(view, has)
        x, ids = own(view, values)[exists], view.neighbor_ids[exists]
        return view.scatter(x, ids, own(view, start), reduce)

    expected = whole.scatter(values[has], whole.neighbor_ids[has], start, reduce)
    assert torch.equal(torch.cat(shards(run)), expected)


def test_reductions_are_the_same_on_every_shard(shards: Shards[Any], whole: LocalGraphView) -> None:
    x = torch.rand(4, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def run(group: ShardGroup) -> tuple[Tensor, Tensor, Tensor]:
        view = part_of(whole, group)
        count = view.all_sum(torch.tensor(group.rank + 1))
        return view.all_sum(x[group.rank]), view.all_max(x[group.rank]), count

    results = shards(run)
    size = len(results)
    for total, largest, count in results:
        assert torch.equal(total, results[0][0])
        torch.testing.assert_close(total, x[:size].sum(0), rtol=1e-15, atol=0)
        assert torch.equal(largest, x[:size].amax(0))
        assert count.item() == size * (size + 1) // 2


@pytest.mark.parametrize("kind", ["power", "self_tuning"])
def test_affinity_has_the_bits_of_one_process(
    shards: Shards[Any], whole: LocalGraphView, kind: Any
) -> None:
    f = torch.rand(N, C, generator=torch.Generator().manual_seed(5), dtype=torch.float64)

    def run(group: ShardGroup) -> tuple[Tensor, Tensor, Tensor]:
        view = part_of(whole, group)
        w = view.affinity(kind, gamma=3.0)
        assert isinstance(w, ShardedAffinity)
        assert w.num_nodes == N
        return w.degrees, w.matmul(own(view, f)), w.all_sum(w.degrees.sum())

    degrees, products, totals = zip(*shards(run))
    expected = whole.affinity(kind, gamma=3.0)
    assert isinstance(expected, LocalAffinity)
    assert torch.equal(torch.cat(degrees), expected.degrees)
    assert torch.equal(torch.cat(products), expected.matmul(f))
    torch.testing.assert_close(totals[0], expected.degrees.sum(), rtol=1e-14, atol=0)


def test_propagation_is_that_of_one_process(shards: Shards[Tensor], whole: LocalGraphView) -> None:
    labels = torch.full((N,), -1)
    labels[:8] = torch.arange(8) % C

    def run(group: ShardGroup) -> Tensor:
        view = part_of(whole, group)
        w = view.affinity("power", gamma=3.0)
        scores: Tensor = local_global(w, own(view, labels), num_classes=C, tol=1e-12)
        return scores

    expected = local_global(whole.affinity("power", gamma=3.0), labels, num_classes=C, tol=1e-12)
    # Scalar products are summed shard by shard; only their last bits differ.
    torch.testing.assert_close(torch.cat(shards(run)), expected, rtol=0, atol=1e-11)


def test_density_paths_are_those_of_one_process(shards: Shards[Any], whole: LocalGraphView) -> None:
    labels = torch.full((N,), -1)
    labels[:8] = torch.arange(8) % C

    def run(group: ShardGroup) -> Any:
        view = part_of(whole, group)
        return density_paths(view, own(view, labels), sigma=0.7)

    expected, parts = density_paths(whole, labels, sigma=0.7), shards(run)
    assert expected.path_length.max() > 2
    for name in ("labels", "source", "origin", "parent", "root", "path_length", "density"):
        got = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(got, getattr(expected, name)), name


@pytest.mark.parametrize("backend", ["auto", "faiss"])
def test_neighbours_do_not_show_shards_or_blocks(shards: Shards[Any], backend: Any) -> None:
    # An integer grid: nearly all distances are tied, so ids decide.
    x = torch.randint(-2, 3, (N, 3), generator=torch.Generator().manual_seed(6)).float()
    present = torch.arange(N) > 40  # the first shards have no rows at all
    expected = knn_self_join(x[present], K, torch.arange(N)[present])

    def run(group: ShardGroup) -> tuple[Tensor, Tensor]:
        start, stop = Partition.even(N, group.size).span(group.rank)
        ids = torch.arange(start, stop)[present[start:stop]]
        return knn_over_shards(x[ids], ids, K, group=group, backend=backend, block=13)

    ids, distances = (torch.cat(parts) for parts in zip(*shards(run)))
    assert torch.equal(ids, expected[0])
    assert torch.equal(distances, expected[1])


def test_a_shard_that_leaves_is_an_error_for_those_that_wait() -> None:
    groups = []  # a group that is still referred to must let go as well

    def run(group: ShardGroup) -> str:
        groups.append(group)
        group.all_gather(torch.zeros(1))
        if group.rank == 1:
            group.abort()
        try:
            group.all_gather(torch.zeros(1))
        except PeerLostError as error:
            return str(error)
        return "waited"

    first, second, third = run_on_shards(3)(run)
    assert second == "shard 1 of 3 has left the group"
    assert first.startswith("shard 0 of 3: ")
    assert third.startswith("shard 2 of 3: ")
