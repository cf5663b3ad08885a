"""Shards that are killed with SIGKILL, at named moments: callers notice nothing but a wait.

What the store says afterwards is compared with a store of one process that nobody disturbed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from labelmesh.graph_store import shard_options
from labelmesh.graph_store.local_store import LocalStore
from labelmesh.graph_store.ray_store import RayStore
from labelmesh.graph_store.shard_options import ShardOptions
from labelmesh.graph_store.store import StoreSpec
from labelmesh.graph_store.view import GraphView, NodeState, PseudoLabels
from torch import Tensor

pytestmark = pytest.mark.ray

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


def test_a_shard_may_die_at_any_moment(pair: Pair) -> None:
    """Rounds with a death in each."""
    pair.play()
    pair.check()
    pids = pair.store.shard_pids()
    os.kill(pids[1], signal.SIGKILL)  # idle
    pair.play()
    pair.check()
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
    shards = pair.store.describe()
    assert [shard.recovered for shard in shards] == [True, True]
    assert not set(pids) & {shard.pid for shard in shards}
