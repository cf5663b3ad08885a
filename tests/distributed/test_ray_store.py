"""What only a store on Ray can do: be sent to trainers, be read during a round, and die."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from labelmesh.graph_store import ray_store
from labelmesh.graph_store.facade import GraphStore
from labelmesh.graph_store.ray_store import RayStore
from labelmesh.graph_store.shard_options import ShardOptions
from labelmesh.graph_store.store import StoreLostError, StoreSpec
from labelmesh.graph_store.view import GraphView, NodeState, PseudoLabels

from .waiting import is_alive, until

pytestmark = pytest.mark.ray

SPEC = StoreSpec(num_nodes=20, dim=3, num_classes=2, k=4)
ALL = torch.arange(SPEC.num_nodes)
X = torch.randn(SPEC.num_nodes, SPEC.dim, generator=torch.Generator().manual_seed(0))


def publish(store: Any) -> Any:
    store.put(ALL, X)
    store.update_knn()
    store.refresh(None, round=0)
    return store


@pytest.fixture(scope="module")
def store(ray_local: str) -> Any:
    with RayStore.create(SPEC, num_shards=2, options=ShardOptions(threads_per_shard=1)) as made:
        yield publish(made)


def test_a_trainer_reads_and_writes_through_its_own_copy(store: RayStore) -> None:
    import ray

    def train(copy: RayStore) -> tuple[Any, Any]:
        copy.put_labels(ALL[:2], ALL[:2] % 2)
        found = copy.neighborhood(ALL[:5], hops=1, round=0)
        return found.hops[0].node_ids.numpy(), copy.neighbors(ALL)[0].numpy()

    node_ids, neighbor_ids = ray.get(ray.remote(num_cpus=0)(train).remote(store))
    assert (neighbor_ids == store.neighbors(ALL)[0].numpy()).all()
    assert set(node_ids) == set(neighbor_ids[:5].flatten())
    assert store.read("labels", ALL[:3]).tolist() == [0, 1, -1]


def test_a_round_is_read_while_the_next_one_is_computed(store: RayStore, tmp_path: Path) -> None:
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)

    def wait_for_reader(graph: GraphView, state: NodeState) -> PseudoLabels:
        if int(graph.node_ids[0]) == 0:
            with open(pipe) as gate:  # opens when the other end is opened
                gate.read()
        return PseudoLabels(state.probs, torch.ones(len(state.labels)))

    publish(store)
    with ThreadPoolExecutor(1) as pool:
        numbers = pool.submit(store.refresh, wait_for_reader, round=1)
        with open(pipe, "w"):
            assert store.published() == (0,)
            assert torch.equal(store.read("features", ALL), X)
            assert store.pseudo_labels(ALL).weight.sum() == 0
        assert numbers.result()["coverage"] == 1
    assert store.published() == (0, 1)
    assert store.pseudo_labels(ALL).weight.sum() == len(ALL)


def test_another_version_of_the_code_is_refused(
    store: RayStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray_store, "__version__", "99.0")
    with pytest.raises(ValueError, match=r"called by Labelmesh 99.0, but the shards run \d"):
        store.refresh(None, round=5)


def test_more_than_the_cluster_has_is_refused(ray_local: str) -> None:
    with pytest.raises(ValueError, match=r"needs 20 CPUs \(2 shards x 10\), but the cluster has 4"):
        GraphStore.create(20, 3, 2, 4, num_shards=2, cpus_per_shard=10.0)
    with pytest.raises(ValueError, match=r"needs 2 GPUs \(2 shards x 1\), but the cluster has 0"):
        GraphStore.create(20, 3, 2, 4, num_shards=2, gpus_per_shard=1.0)
    with pytest.raises(ValueError, match=r"device = 'cuda', but gpus_per_shard = 0"):
        GraphStore.create(20, 3, 2, 4, device="cuda")
    with pytest.raises(ValueError, match='backend = "ivf" with num_shards = 2'):
        GraphStore.create(20, 3, 2, 4, num_shards=2, backend="ivf")
    with pytest.raises(ValueError, match=r"of 10,000,000,000 nodes .* takes [\d,]+ bytes per node"):
        GraphStore.create(10_000_000_000, 128, 10, 15, num_shards=4)
    with pytest.raises(ValueError, match="k = 20 must be less than num_nodes = 20"):
        GraphStore.create(20, 3, 2, 20)


def test_a_snapshot_is_restored_on_another_number_of_shards(
    store: RayStore, tmp_path: Path
) -> None:
    publish(store)
    store.snapshot(str(tmp_path))
    with GraphStore.restore(str(tmp_path), num_shards=3, threads_per_shard=1) as restored:
        assert restored.num_shards == 3
        assert restored.published() == store.published()
        assert torch.equal(restored.neighbors(ALL)[0], store.neighbors(ALL)[0])
        assert restored.update_knn().searched == 0


@pytest.mark.parametrize("restarts", [False, True])
def test_a_shard_that_died_is_an_error_and_never_an_empty_answer(
    ray_local: str, restarts: bool
) -> None:
    import ray

    with RayStore.create(SPEC, num_shards=2, options=ShardOptions(threads_per_shard=1)) as doomed:
        publish(doomed)
        pid = doomed.shard_pids()[1]
        ray.kill(doomed._link.actors[1], no_restart=not restarts)
        until(lambda: not is_alive(pid))  # it may answer as long as it lives
        calls: list[Callable[[], object]] = [
            lambda: doomed.neighbors(ALL),
            lambda: doomed.neighborhood(ALL, hops=1, round=0),
            lambda: doomed.query(X, k=2, round=0),
            lambda: doomed.put(ALL, X),
            doomed.update_knn,
            lambda: doomed.refresh(None, round=1),
        ]
        for call in calls:
            with pytest.raises(StoreLostError, match="restore"):
                call()
        assert torch.equal(doomed.read("features", ALL[:3]), X[:3])  # the other shard lives
