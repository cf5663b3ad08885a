"""The cost model against the counted collectives of real shards, and its own laws."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from labelmesh.graph_store import cost
from labelmesh.graph_store.cost import Cost, Machine, Setting
from labelmesh.graph_store.incremental import LiveGraph
from labelmesh.graph_store.kernels.rows import similarity_from_distance
from labelmesh.graph_store.partition import Partition, route
from labelmesh.graph_store.peers import Peers
from labelmesh.graph_store.sharded_affinity import ShardedAffinity
from labelmesh.graph_store.sharded_view import ShardedGraphView, plan_fetch
from labelmesh.graph_store.solvers import local_global
from labelmesh.graph_store.solvers.conjugate_gradient import CgResult
from labelmesh.graph_store.store import StoreSpec
from labelmesh.graph_store.traffic import CountingGroup, Traffic

N, D, K, C, S = 2400, 8, 8, 3, 4


def setting(**changes: object) -> Setting:
    spec = StoreSpec(N, D, C, K, metric="euclidean", slack=24)
    return replace(Setting(spec, S), **changes)  # type: ignore[arg-type]


def on_shards(function):  # type: ignore[no-untyped-def]
    rendezvous = torch.distributed.HashStore()
    with ThreadPoolExecutor(S) as pool:
        return list(pool.map(lambda r: function(CountingGroup(r, S, rendezvous)), range(S)))


@pytest.fixture(scope="module")
def counted() -> dict[str, list[Traffic] | list[float]]:
    """Traffic of a build, of weights and of a solve, and what the data have decided."""
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
    labels = torch.full((N,), -1)
    labels[:50] = torch.arange(50) % C
    partition = Partition.even(N, S)

    def play(group: CountingGroup) -> dict[str, object]:
        own = slice(*partition.span(group.rank))
        live = LiveGraph(Peers(partition, group.rank, group), K, slack=24)
        report = live.update(x[own], torch.ones(N // S, dtype=torch.bool))
        found: dict[str, object] = {"build": group.traffic, "pairs": float(report.distances)}
        group.traffic = Traffic()
        similarity = similarity_from_distance(live.distances)
        graph = live.neighbor_ids, similarity, live.distances.float()
        view = ShardedGraphView(group, partition, *graph, metric="euclidean")
        w: ShardedAffinity = view.affinity("self_tuning")
        found |= {"weights": group.traffic, "entries": float(len(w.csr.cols))}
        found["halo"] = float(w.csr.num_cols - w.csr.num_rows)
        group.traffic = Traffic()

        def note(result: CgResult) -> None:
            found["iterations"] = float(result.iterations)

        local_global(w, labels[own], num_classes=C, tol=1e-6, on_solve=note)
        return found | {"solve": group.traffic}

    parts = on_shards(play)
    return {name: [part[name] for part in parts] for name in parts[0]}


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def test_counted_rounds_are_as_the_model_says(counted: dict[str, list]) -> None:  # type: ignore[type-arg]
    known = setting(
        mutual=2 - mean(counted["entries"]) / (N / S * K),
        iterations=int(counted["iterations"][0]),
    )
    assert mean(counted["halo"]) == pytest.approx(known.halo, rel=0.05)
    for name, expected in (
        ("build", cost.build(known)),
        ("weights", cost.weights(known)),
        ("solve", cost.solve(known)),
    ):
        received = mean([traffic.received for traffic in counted[name]])
        messages = mean([traffic.messages for traffic in counted[name]])
        assert received == pytest.approx(expected.received, rel=0.1), name
        assert messages == pytest.approx(expected.messages, rel=0.25), name
    pairs = N * (N - 1) / 2 + N * 24
    assert counted["pairs"][0] == pytest.approx(pairs, rel=0.05)
    assert S * cost.build(known).flops == pytest.approx(D * N * (N - 1) + 3 * D * N * 24)


def test_a_halo_crosses_once_however_often_it_is_drawn() -> None:
    partition = Partition.even(N, S)
    ids = torch.randint(N, (N // S * K,), generator=torch.Generator().manual_seed(1))

    def rows(group: CountingGroup) -> tuple[int, int]:
        plan = plan_fetch(group, partition, ids)
        own = plan.route.counts[group.rank]
        return len(plan.route.node_ids) - own, group.traffic.received

    for fetched, received in on_shards(rows):
        assert fetched == pytest.approx(setting().distinct_outside(len(ids)), rel=0.03)
        # Every shard asks for the same ids here: three others want what this one has.
        assert received == pytest.approx(8 * fetched + 8 * 3, rel=0.05)


def test_puts_reach_as_many_shards_as_routing_says() -> None:
    for num_nodes, shards, chunk in [(1000, 7, 64), (1000, 1, 64), (512, 4, 128), (100, 50, 64)]:
        partition = Partition.even(num_nodes, shards)
        requests = sum(
            len(route(partition, torch.arange(a, min(a + chunk, num_nodes))).requests())
            for a in range(0, num_nodes, chunk)
        )
        spec = StoreSpec(num_nodes, D, C, K)
        assert cost.puts_per_shard(Setting(spec, shards, chunk)) * shards == pytest.approx(requests)


def test_one_shard_sends_nothing_and_more_shards_share_the_work() -> None:
    alone = replace(setting(), num_shards=1)
    for phase in (cost.build, cost.follow, cost.weights, cost.solve):
        assert phase(alone).received == 0
        assert phase(alone).messages == pytest.approx(0, abs=4)
    assert cost.build(alone).flops == pytest.approx(4 * cost.build(setting()).flops)
    assert cost.follow(setting(searched=0.0, touched=0.1)).flops < cost.build(setting()).flops / 50


def test_seconds_name_the_bottleneck() -> None:
    machine = Machine(flops=100.0, sparse=10.0, network=5.0, latency=2.0, disk=1.0)
    each = Cost(200.0, 20.0, 3.0, 7.0) + Cost() * 5.0
    assert cost.seconds(each, machine) == {
        "arithmetic": 2.0,
        "network": 4.0,
        "messages": 6.0,
        "disk": 7.0,
    }
    assert cost.seconds(each, machine, is_sparse=True)["arithmetic"] == 20.0


def test_what_goes_by_all_nodes_does_not_shrink_with_the_shards() -> None:
    large = replace(setting(), spec=replace(setting().spec, num_nodes=10**9))
    sizes = [cost.resident_bytes(replace(large, num_shards=s))["update"] for s in (256, 1024, 4096)]
    assert sizes[0] > sizes[1] > sizes[2] > 10**9
