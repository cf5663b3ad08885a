"""Shards that are killed with SIGKILL, at named moments: callers notice nothing but a wait.

What the store says afterwards is compared with a store of one process that nobody disturbed, while
other clients read and write.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from labelmesh.graph_store import shard_options
from labelmesh.graph_store.local_store import LocalStore
from labelmesh.graph_store.ray_store import RayStore
from labelmesh.graph_store.shard_options import ShardOptions
from labelmesh.graph_store.store import StoreLostError, StoreSpec
from labelmesh.graph_store.view import GraphView, NodeState, PseudoLabels
from torch import Tensor

pytestmark = [pytest.mark.ray, pytest.mark.soak]

N, D, C = 60, 4, 3
SPEC = StoreSpec(num_nodes=N, dim=D, num_classes=C, k=5)
ALL = torch.arange(N)
COLUMNS = ("features", "probs", "neighbor_ids", "similarity", "distances", "density", "score")


def features(round: int) -> Tensor:
    return torch.randn(N, D, generator=torch.Generator().manual_seed(round))


def mortal(folder: str) -> Any:
    """`ShardActor` that kills itself at a moment for which there is a file; by value to workers."""
    from labelmesh.graph_store.actors import ShardActor

    class Mortal(ShardActor):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            happen, update = self._shard._happen, self._shard._update_graph

            def watched(record: Any, **options: Any) -> Any:
                self._strike(f"before-{record.kind}")
                written = happen(record, **options)
                self._strike(f"after-{record.kind}")
                return written

            def watched_update(*columns: Tensor) -> Any:
                self._strike("update")
                return update(*columns)

            shard: Any = self._shard
            shard._happen, shard._update_graph = watched, watched_update

        def _strike(self, moment: str) -> None:
            name = f"{folder}/{self._rank}-{moment}"
            try:
                os.rename(name, f"{name}.struck")
            except FileNotFoundError:
                return
            os.kill(os.getpid(), signal.SIGKILL)

        def join(self, *args: Any) -> None:
            self._strike("join")
            super().join(*args)

        def save(self, *args: Any) -> Any:
            part = super().save(*args)
            self._strike("save")
            return part

    return Mortal


def refresh_killing(folder: str, rank: int) -> Any:
    """A method; shard `rank` dies in it if there is a file for that."""

    def refresh(graph: GraphView, state: NodeState) -> PseudoLabels:
        graph.all_sum(torch.ones(1))
        own = int(int(graph.node_ids[0]) > 0)
        name = f"{folder}/{own}-solve"
        if own == rank and os.path.exists(name):
            os.rename(name, f"{name}.struck")
            os.kill(os.getpid(), signal.SIGKILL)
        near = graph.gather(state.features, graph.neighbor_ids.reshape(-1).clamp(min=0))
        score = near.reshape(len(state.labels), -1).sum(1)
        total = graph.all_sum(torch.tensor([len(score)]))
        weight = (score / 64).clamp(0, 1) * (total == N)
        return PseudoLabels(torch.full((len(score), C), 1 / C), weight, {"score": score})

    return refresh


class Pair:
    """A store on shards that die, and one that nobody disturbs."""

    def __init__(self, store: RayStore, folder: Path) -> None:
        self.store, self.folder = store, folder
        self.expected = LocalStore(SPEC)
        self.round = -1

    def kill(self, rank: int, moment: str) -> None:
        (self.folder / f"{rank}-{moment}").touch()

    def play(self) -> None:
        """One round in both, with a removal."""
        self.round += 1
        fn = refresh_killing(str(self.folder), 1)
        for each in (self.store, self.expected):
            for ids in ALL.split(25):
                each.put(ids, features(self.round)[ids], torch.full((len(ids), C), 1 / C))
            each.remove(ALL[self.round :: 17])
            each.update_knn()
            each.refresh(fn, round=self.round)

    def check(self) -> None:
        assert not [path for path in self.folder.iterdir() if path.suffix != ".struck"]
        assert self.store.published() == self.expected.published()
        for round in self.expected.published():
            for column in COLUMNS:
                got = self.store.read(column, ALL, round=round)
                assert torch.equal(got, self.expected.read(column, ALL, round=round)), column
            got = self.store.pseudo_labels(ALL, round=round).weight
            assert torch.equal(got, self.expected.pseudo_labels(ALL, round=round).weight)


@pytest.fixture(scope="module")
def pair(ray_local: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder, logs = tmp_path_factory.mktemp("moments"), tmp_path_factory.mktemp("logs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shard_options, "ShardActor", mortal(str(folder)))
        options = ShardOptions(threads_per_shard=1)
        store = RayStore.create(SPEC, num_shards=2, log_uri=str(logs), options=options)
    with store:
        yield Pair(store, folder)
    assert list(logs.iterdir()) == []


def copy_of(store: RayStore) -> RayStore:
    """As another process would get it."""
    import ray

    copied: RayStore = ray.get(ray.put(store))
    return copied


class Reader(threading.Thread):
    """Reads published rounds until it is told to stop; every one must be as it was put."""

    def __init__(self, store: RayStore) -> None:
        super().__init__()
        self.store, self.stop, self.num_reads = store, threading.Event(), 0
        self.wrong: list[Any] = []

    def run(self) -> None:
        while not self.stop.is_set():
            for round in self.store.published():
                kept = ALL[~torch.isin(ALL, torch.cat([ALL[q::17] for q in range(round + 1)]))]
                try:
                    rows = self.store.read("features", kept, round=round)
                except ValueError:
                    if round in self.store.published():  # else it was dropped meanwhile
                        self.wrong.append(round)
                    continue
                except BaseException as error:
                    self.wrong.append(error)
                    return
                self.num_reads += 1
                if not torch.equal(rows, features(round)[kept]):
                    self.wrong.append((round, rows))


class Writer(threading.Thread):
    """Gives and takes labels; every call must have its effect, in order."""

    def __init__(self, store: RayStore) -> None:
        super().__init__()
        self.store, self.stop, self.given = store, threading.Event(), 0
        self.wrong: list[Any] = []

    def run(self) -> None:
        while not self.stop.is_set():
            self.given += 1
            labels = (ALL + self.given) % C
            try:
                self.store.put_labels(ALL, labels)
                if not torch.equal(self.store.read("labels", ALL), labels):
                    self.wrong.append(self.given)
            except BaseException as error:
                self.wrong.append(error)
                return


def test_a_shard_may_die_at_any_moment(pair: Pair, tmp_path: Path) -> None:
    """Rounds with a death in each, while others read and write."""
    pair.play()
    pair.check()
    pids = pair.store.shard_pids()
    reader, writer = Reader(copy_of(pair.store)), Writer(copy_of(pair.store))
    reader.start()
    writer.start()
    try:
        os.kill(pids[1], signal.SIGKILL)  # idle
        pair.play()
        for rank, moment in [
            (1, "after-put"),
            (0, "update"),
            (1, "before-staged"),  # the other one has staged the update
            (1, "solve"),
            (0, "after-solved"),
            (0, "before-published"),
            (1, "before-published"),  # shard 0 has published
        ]:
            pair.kill(rank, moment)
            pair.play()
            pair.check()
        pair.kill(1, "save")
        pair.kill(0, "join")  # while it looks for the other one
        pair.store.snapshot(str(tmp_path))
    finally:
        for thread in (reader, writer):
            thread.stop.set()
            thread.join()
    assert reader.wrong == writer.wrong == []
    assert reader.num_reads > 0
    assert torch.equal(pair.store.read("labels", ALL), (ALL + writer.given) % C)
    pair.expected.put_labels(ALL, (ALL + writer.given) % C)
    saved = LocalStore.restore(str(tmp_path))
    assert saved.published() == pair.expected.published()
    last = pair.round
    assert torch.equal(saved.read("score", ALL), pair.expected.read("score", ALL, round=last))
    shards = pair.store.describe()
    assert [shard.recovered for shard in shards] == [True, True]
    assert not set(pids) & {shard.pid for shard in shards}
    assert [shard.num_rows for shard in shards] == [
        int(pair.expected.read("present", ids).sum()) for ids in ALL.split(N // 2)
    ]
    assert min(shard.version for shard in shards) > 20


def test_what_a_caller_that_died_left_half_done_is_finished_or_ended(pair: Pair) -> None:
    pair.play()
    store, half = pair.store, copy_of(pair.store)
    store.put(ALL, features(50))
    # It asked one shard alone for an update, which waits for the other one.
    half._link.find()
    half._link._meet()
    link = half._link
    call = link.actors[0].update_knn.options(concurrency_group="write")
    stuck = call.remote(link._incarnations[0], link._group, half._complete_puts())
    store = pair.store = copy_of(store)
    store.update_knn()
    with pytest.raises(RuntimeError):
        link.get([stuck])
    # It published on shard 0 alone.
    number = pair.round = pair.round + 1
    fn = refresh_killing(str(pair.folder), 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(half, "_publish", lambda round, attempt: attempts.append(attempt))
        attempts: list[str] = []
        half.refresh(fn, round=number)
    assert store.published()[-1] == number - 1
    with pytest.raises(ValueError, match=f"round {number} is not published yet"):
        store.read("score", ALL, round=number)
    half._get([half._request(0, "write", "publish", number, attempts[0])])
    pair.expected.put(ALL, features(50))
    pair.expected.update_knn()
    pair.expected.refresh(fn, round=number)
    pair.check()
    half._publish(number, attempts[0])  # again
    pair.check()


def test_a_store_is_set_back_in_place_after_deaths(pair: Pair, tmp_path: Path) -> None:
    pair.store.snapshot(str(tmp_path / "saved"))
    back, number = LocalStore.restore(str(tmp_path / "saved")), pair.round
    pair.play()
    before = copy_of(pair.store)
    pair.store.put(ALL, features(9))  # waits, and must be forgotten
    late = pair.store._request(0, "put", "put", ALL[:1], features(9)[:1], None, ("late", 1))
    pair.store._get([late])
    os.kill(pair.store.shard_pids()[0], signal.SIGKILL)
    pair.store.load(str(tmp_path / "saved"))
    pair.expected, pair.round = back, number
    pair.check()
    assert [shard.num_waiting for shard in pair.store.describe()] == [0, 0]
    assert pair.store.update_knn().searched == 0
    os.kill(pair.store.shard_pids()[1], signal.SIGKILL)  # its log begins with the snapshot
    pair.store = before  # a client that does not know of any of this
    pair.check()
    pair.play()
    pair.check()
    other = LocalStore(StoreSpec(num_nodes=N, dim=D + 1, num_classes=C, k=5))
    other.snapshot(str(tmp_path / "other"))
    with pytest.raises(ValueError, match="the snapshot has dim = 5, this store has 4"):
        pair.store.load(str(tmp_path / "other"))
    pair.check()


def test_without_a_log_a_store_can_be_set_back_too(ray_local: str, tmp_path: Path) -> None:
    import ray

    node = ray.get_runtime_context().get_node_id()
    options = ShardOptions(threads_per_shard=1, node_ids=(node,))
    with pytest.raises(ValueError, match="node_ids names 1 nodes, but there are 2 shards"):
        RayStore.create(SPEC, num_shards=2, options=options)
    with RayStore.create(SPEC, options=options) as store:
        store.put(ALL, features(0))
        store.update_knn()
        store.refresh(None, round=0)
        store.snapshot(str(tmp_path))
        wanted = store.neighbors(ALL)[0]
        (shard,) = store.describe()
        assert (shard.node_id, shard.version, shard.recovered) == (node, 0, False)
        os.kill(shard.pid, signal.SIGKILL)
        with pytest.raises(StoreLostError, match="restore"):
            store.neighbors(ALL)
        (shard,) = store.describe()
        assert not shard.is_whole
        with pytest.raises(StoreLostError, match="restarted empty; restore"):
            store.neighbors(ALL)
        store.load(str(tmp_path))
        assert torch.equal(store.neighbors(ALL)[0], wanted)
        assert store.published() == (0,)
