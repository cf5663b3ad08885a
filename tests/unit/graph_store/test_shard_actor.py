"""What the process of a shard does when callers come and go; no cluster is started."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
import torch
from labelmesh.graph_store.actors import ShardActor
from labelmesh.graph_store.inbox import complete_puts
from labelmesh.graph_store.partition import Partition
from labelmesh.graph_store.recovery import prepare_logs
from labelmesh.graph_store.sharded_view import (
    GroupChangedError,
    PeerLostError,
    open_rendezvous,
    reach_rendezvous,
)
from labelmesh.graph_store.store import StoreSpec

N, D, C = 40, 3, 2
SPEC = StoreSpec(num_nodes=N, dim=D, num_classes=C, k=4)


@pytest.fixture
def actors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[ShardActor]:
    """Two shards that have met, with features that no update has seen."""
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    threads = torch.get_num_threads()
    partition = Partition.even(N, 2)
    prepare_logs(str(tmp_path), "store")
    shards = [ShardActor(SPEC, partition, r, 1, "store", str(tmp_path)) for r in range(2)]
    torch.set_num_threads(threads)
    meet(shards, "first")
    x = torch.randn(N, D, generator=torch.Generator().manual_seed(0))
    for shard in shards:
        inner = shard._shard
        inner.put(inner.node_ids, x[inner.node_ids], None, ("put", 2))
    return shards


def meet(shards: Sequence[ShardActor], name: str) -> None:
    host, port = shards[0].open_rendezvous(shards[0]._incarnation)
    with ThreadPoolExecutor(len(shards)) as pool:
        joined = [pool.submit(s.join, s._incarnation, name, host, port, "gloo") for s in shards]
        for each in joined:
            each.result()


def test_a_shard_that_is_told_to_leave_in_an_update_does_not_go_on_alone(
    actors: list[ShardActor], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = actors
    puts = complete_puts([actor._shard.seal() for actor in actors])
    absorb = first._shard.absorb

    def left_meanwhile(complete: Sequence[str] | None) -> None:
        absorb(complete)
        for actor in actors:
            actor.leave(actor._incarnation)

    with monkeypatch.context() as patch:
        patch.setattr(first._shard, "absorb", left_meanwhile)
        with pytest.raises(PeerLostError, match="shard 0 of 2"):
            first.update_knn(first._incarnation, "first", puts)
    with pytest.raises(GroupChangedError, match="shard 1 is not in the group"):
        second.update_knn(second._incarnation, "first", puts)
    assert first._shard._state.staged is None
    meet(actors, "second")
    with ThreadPoolExecutor(2) as pool:
        updates = [pool.submit(a.update_knn, a._incarnation, "second", puts) for a in actors]
        reports = [update.result() for update in updates]
    assert [report.changed for report in reports] == [N, N]


def test_joining_where_nobody_listens_any_more_is_refused_at_once(
    actors: list[ShardActor],
) -> None:
    rendezvous = open_rendezvous("127.0.0.1")
    port = rendezvous.port
    del rendezvous
    with pytest.raises(GroupChangedError, match=f"cannot meet at 127.0.0.1:{port}"):
        reach_rendezvous("127.0.0.1", port)
    with pytest.raises(GroupChangedError, match="cannot meet"):
        actors[1].join(actors[1]._incarnation, "late", "127.0.0.1", port, "gloo")
