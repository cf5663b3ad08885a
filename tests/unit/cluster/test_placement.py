"""Plans: spread evenly, shards beside trainers, nothing on a node that cannot hold it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from labelmesh.cluster.placement import Node, plan_placement, plan_run
from labelmesh.cluster.resources import Need, ResourceError
from labelmesh.trainers.config import load_config
from labelmesh.trainers.placement import Placement

GPU_NODES = [Node(f"g{i}", 16.0, 4.0) for i in range(4)]
HEAD = Node("head", 8.0, 0.0)


def trainers(count: int, cpus: float = 1.0, gpus: float = 0.0) -> Need:
    return Need("trainers", count, cpus, gpus)


def shards(count: int, cpus: float = 1.0, gpus: float = 0.0) -> Need:
    return Need("shards", count, cpus, gpus)


def test_trainers_and_shards_are_balanced_over_the_same_nodes() -> None:
    plan = plan_placement([HEAD, *GPU_NODES], trainers(8, gpus=0.4), shards(4, gpus=0.6))
    assert Counter(plan.trainers) == {f"g{i}": 2 for i in range(4)}
    assert Counter(plan.shards) == {f"g{i}": 1 for i in range(4)}
    assert plan.others == ("head",)
    assert plan.selector == {"ray.io/node-id": "!in(head)"}


def test_more_shards_than_trainers_stay_beside_them() -> None:
    plan = plan_placement(GPU_NODES, trainers(2, gpus=1.0), shards(6))
    assert Counter(plan.trainers) == {"g0": 1, "g1": 1}
    assert Counter(plan.shards) == {"g0": 3, "g1": 3}
    assert plan.others == ("g2", "g3")


def test_pack_takes_the_fewest_nodes() -> None:
    plan = plan_placement(GPU_NODES, trainers(6, gpus=1.0), shards(2), strategy="pack")
    assert Counter(plan.trainers) == {"g0": 3, "g1": 3}
    assert plan.strategy == "PACK"
    one = plan_placement(GPU_NODES, trainers(8, gpus=0.4), shards(4, gpus=0.6), strategy="pack")
    assert set(one.trainers) == {"g0", "g1"}


def test_one_shard_beside_many_trainers() -> None:
    plan = plan_placement(GPU_NODES, trainers(4, gpus=1.0), shards(1))
    assert plan.shards == ("g0",)
    assert plan.others == ()
    assert plan.selector == {}


def test_shards_find_room_apart_where_trainers_leave_none() -> None:
    tight = [Node("g0", 1.0, 1.0), Node("g1", 1.0, 1.0), HEAD]
    plan = plan_placement(tight, trainers(2, gpus=1.0), shards(2, cpus=4.0))
    assert plan.trainers == ("g0", "g1")
    assert plan.shards == ("head", "head")


def test_a_share_of_a_gpu_comes_from_one_gpu() -> None:
    halves = [Node("a", 8.0, 1.0), Node("b", 8.0, 1.0)]
    plan_placement(halves, trainers(2, gpus=0.4), shards(2, gpus=0.6))
    with pytest.raises(ResourceError, match=r"2 trainers of 1 CPUs and 0.6 GPUs each and 2 shards"):
        plan_placement(halves, trainers(2, gpus=0.6), shards(2, gpus=0.6))


def test_a_process_larger_than_every_node_is_refused_with_the_nodes_numbers() -> None:
    small = [Node(f"n{i}", 4.0, 1.0) for i in range(6)]
    with pytest.raises(
        ResourceError,
        match=r"1 trainers of 1 CPUs and 2 GPUs each; .* 6 nodes one by one, which offer "
        r"4 CPUs and 1 GPUs, .* \(and 2 more\); lower",
    ):
        plan_placement(small, trainers(1, gpus=2.0), None)


def test_a_run_is_planned_on_what_is_free_and_else_waits_for_the_rest() -> None:
    spec = load_config("dag-digits", {"train.num_workers": 2, "graph.num_shards": 2})
    total = [Node("a", 2.0, 0.0), Node("b", 2.0, 0.0)]
    free = [Node("a", 0.0, 0.0), Node("b", 2.0, 0.0)]
    assert plan_run(spec, total=total, free=free).nodes == ("b",)
    busy = [Node("a", 0.0, 0.0), Node("b", 0.5, 0.0)]
    assert plan_run(spec, total=total, free=busy).nodes == ("a", "b")


def test_a_cluster_that_grows_is_planned_for_by_what_it_may_become() -> None:
    spec = load_config("dag-cifar10", {"train.num_workers": 2, "graph.num_shards": 2})
    with pytest.raises(ResourceError, match="needs 2 GPUs"):
        plan_run(spec, total=[HEAD])
    assert plan_run(spec, total=[HEAD], maximum=(72.0, 4.0)) == Placement(strategy="PACK")
    with pytest.raises(ResourceError, match="the cluster has 1"):
        plan_run(spec, total=[HEAD], maximum=(72.0, 1.0))


def test_many_other_nodes_are_not_listed() -> None:
    plan = Placement(("a",), ("a",), tuple(f"n{i}" for i in range(65)))
    assert plan.selector == {"ray.io/node-id": "in(a)"}


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), min_size=1, max_size=5),
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]),
    st.sampled_from([0.0, 0.25, 0.5]),
    st.sampled_from(["spread", "pack"]),
)
def test_no_plan_overfills_a_node(
    sizes: list[tuple[int, int]], t: int, s: int, tg: float, sg: float, strategy: str
) -> None:
    nodes = [Node(f"n{i}", float(c), float(g)) for i, (c, g) in enumerate(sizes)]
    one, two = trainers(t, 1.0, tg), shards(s, 0.5, sg)
    try:
        plan = plan_placement(nodes, one, two, strategy=strategy)  # type: ignore[arg-type]
    except ResourceError:
        return
    assert (len(plan.trainers), len(plan.shards)) == (t, s)
    for node in nodes:
        holds = (plan.trainers.count(node.node_id), plan.shards.count(node.node_id))
        assert holds[0] * 1.0 + holds[1] * 0.5 <= node.cpus
        assert holds[0] * tg + holds[1] * sg <= node.gpus
        assert (node.node_id in plan.others) == (holds == (0, 0))
