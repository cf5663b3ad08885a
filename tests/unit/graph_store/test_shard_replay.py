"""A shard that is replayed from its log is the shard that wrote it, bit for bit."""

from __future__ import annotations

import errno
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from labelmesh.graph_store import journal as journal_module
from labelmesh.graph_store import journal_files
from labelmesh.graph_store.inbox import complete_puts
from labelmesh.graph_store.journal import Journal
from labelmesh.graph_store.journal_files import JournalError
from labelmesh.graph_store.local_store import LocalStore
from labelmesh.graph_store.partition import Partition
from labelmesh.graph_store.peers import Peers
from labelmesh.graph_store.recovery import open_journal, prepare_logs, recover, remove_log
from labelmesh.graph_store.shard import Shard
from labelmesh.graph_store.sharded_view import (
    PeerLostError,
    ShardGroup,
    open_rendezvous,
    reach_rendezvous,
)
from labelmesh.graph_store.store import StoreSpec, UndecidedRoundError
from labelmesh.graph_store.view import GraphView, NodeState, PseudoLabels
from torch import Tensor

N, D, C = 40, 3, 2
SPEC = StoreSpec(num_nodes=N, dim=D, num_classes=C, k=4)
ALL = torch.arange(N)


def method(graph: GraphView, state: NodeState) -> PseudoLabels:
    score = graph.similarity.sum(1)
    return PseudoLabels(state.probs.clamp(0, 1), (score / 9).clamp(0, 1), {"score": score})


def logged(folder: Path, spec: StoreSpec = SPEC, partition: Partition | None = None) -> Shard:
    """A shard as its log says; empty where there is none."""
    shard = Shard(spec, partition or Partition.even(spec.num_nodes, 1))
    recover(shard, Journal(str(folder), "store"))
    return shard


def assert_same(one: Shard, other: Shard) -> None:
    a, b = one._state.whole(), other._state.whole()
    a.fields["known"].sort()
    b.fields["known"].sort()
    # A round and what is staged may share a tensor in one and not in the other.
    skipped = ("parts",)
    for key in a.fields:
        if key not in skipped:
            assert _plain(a.fields[key]) == _plain(b.fields[key]), key
    assert a.fields["parts"].keys() == b.fields["parts"].keys()
    for part, names in a.fields["parts"].items():
        for column, name in names.items():
            theirs = b.tensors[b.fields["parts"][part][column]]
            assert torch.equal(a.tensors[name], theirs), (part, column)
            assert a.tensors[name].dtype == theirs.dtype


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize("seed", range(4))
def test_random_histories_are_replayed(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_module, "SMALLEST", 4000)  # so that it is shortened as well
    g = torch.Generator().manual_seed(seed)
    shard, round = logged(tmp_path), 0
    shard.put(ALL, torch.randn(N, D, generator=g), None, ("all", 1))
    for step in range(60):
        action = int(torch.randint(9, (1,), generator=g))
        ids = torch.randperm(N, generator=g)[: 1 + int(torch.randint(9, (1,), generator=g))]
        stamp = (f"put {step}", 1 + int(torch.randint(2, (1,), generator=g)))
        if action < 3:
            probs = torch.rand(len(ids), C, generator=g) if action else None
            shard.put(ids, torch.randn(len(ids), D, generator=g), probs, stamp)
        elif action == 3:
            shard.remove(ids, stamp)
        elif action == 4:
            shard.put_labels(ids, torch.randint(-1, C, (len(ids),), generator=g), stamp)
        elif action == 5:
            shard.absorb(complete_puts([shard.seal()]))
        elif action < 8:
            shard.update_knn(complete_puts([shard.seal()]))
            if action == 7:
                shard.solve(method, round, f"try {step}")
            if action == 7 and step % 3:
                shard.publish(round, f"try {step}")
                shard.publish(round, f"try {step}")  # told twice
                round += 1
        else:
            assert_same(shard, logged(tmp_path))
            shard = logged(tmp_path)
    assert_same(shard, logged(tmp_path))
    assert round > 0


@pytest.mark.parametrize("update", ["exact", "refine"])
def test_an_update_after_a_death_gives_the_graph_of_one_without(
    update: Any, tmp_path: Path
) -> None:
    spec = StoreSpec(num_nodes=1200, dim=8, num_classes=2, k=6, update=update, recall_target=0.9)
    g = torch.Generator().manual_seed(5)
    x, ids = torch.randn(1200, 8, generator=g), torch.arange(1200)
    kept, died = LocalStore(spec), logged(tmp_path / "log", spec)
    some = torch.randperm(1200, generator=g)[:200]
    y = x[some] + 0.3 * torch.randn(200, 8, generator=g)
    for shard in (kept._shard, died):
        shard.put(ids, x, None)
        shard.update_knn()
        shard.solve(None, 0)
        shard.publish(0)
        shard.put(some, y, None)
    died = logged(tmp_path / "log", spec)
    kept.snapshot(str(tmp_path / "saved"))  # absorbs: what is staged is old in it
    restored = LocalStore.restore(str(tmp_path / "saved"))
    reports = [shard.update_knn() for shard in (kept._shard, died, restored._shard)]
    for shard in (died, restored._shard):
        for column in ("neighbor_ids", "distances", "density"):
            one, other = kept._shard.rows(ids, [column], None), shard.rows(ids, [column], None)
            assert torch.equal(one[column], other[column])
    assert len({report.recall for report in reports}) == 1


def test_a_full_disk_leaves_the_shard_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = logged(tmp_path)
    shard.put(ALL, torch.randn(N, D), None, ("a", 1))
    shard.seal()
    shard.update_knn(["a"])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(journal_files, "write_all", full)
        for write in (
            lambda: shard.put(ALL, torch.zeros(N, D), None, ("b", 1)),
            lambda: shard.put_labels(ALL, ALL % C, ("c", 1)),
            lambda: shard.solve(method, 0, "d"),
            lambda: shard.load({**shard.contents(), "labels": {"labels": ALL % C}}),
        ):
            with pytest.raises(JournalError, match=r"bytes could not be written .*No space left"):
                write()
    assert_same(shard, logged(tmp_path))
    shard = logged(tmp_path)
    shard.put(ALL, torch.zeros(N, D), None, ("b", 1))  # the same message, repeated
    assert len(shard._state.inbox.waiting) == 1
    shard.load({**shard.contents(), "labels": {"labels": ALL % C}})
    assert_same(shard, logged(tmp_path))
    assert shard._state.inbox.is_empty()


class Shards:
    """Shards of one store in threads, each with a log."""

    def __init__(self, folder: Path, count: int, spec: StoreSpec = SPEC) -> None:
        self.folder, self.partition, self.spec = folder, Partition.even(N, count), spec
        self.pool = ThreadPoolExecutor(count)
        self.shards = [Shard(spec, self.partition, rank) for rank in range(count)]
        for rank, shard in enumerate(self.shards):
            recover(shard, Journal(str(folder / str(rank)), "store"))
        self.meet()

    def meet(self) -> None:
        rendezvous = open_rendezvous("127.0.0.1")
        count = len(self.shards)

        def join(rank: int) -> None:
            keys = reach_rendezvous("127.0.0.1", rendezvous.port)
            self.shards[rank].join(ShardGroup(rank, count, keys, timeout_s=60.0))

        list(self.pool.map(join, range(count)))

    def die(self, rank: int) -> None:
        """One is replayed from its log; all meet anew."""
        self.shards[rank] = Shard(self.spec, self.partition, rank)
        recover(self.shards[rank], Journal(str(self.folder / str(rank)), "store"))
        self.meet()

    def put(self, x: Tensor, name: str) -> None:
        for shard in self.shards:
            shard.put(shard.node_ids, x[shard.node_ids], None, (name, len(self.shards)))

    def update(self) -> list[Any]:
        complete = complete_puts([shard.seal() for shard in self.shards])

        def run(shard: Shard) -> Any:
            try:
                return shard.update_knn(complete)
            except BaseException as error:
                shard._group.abort()  # type: ignore[union-attr]
                return error

        return list(self.pool.map(run, self.shards))

    def column(self, name: str) -> Tensor:
        return torch.cat([s.rows(s.node_ids, [name], None)[name] for s in self.shards])


@pytest.mark.parametrize("moment", ["absorb", "graph", "stage"])
def test_an_update_that_fails_on_one_shard_is_repeated_as_a_whole(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(3)
    x, y = torch.randn(N, D, generator=g), torch.randn(N, D, generator=g)
    group, expected = Shards(tmp_path, 2), LocalStore(SPEC)
    for name, rows in (("first", x), ("second", x + 0.01), ("third", y)):
        group.put(rows, name)
        expected.put(ALL, rows)
        if name != "third":
            assert not [r for r in group.update() if isinstance(r, BaseException)]
            expected.update_knn()
    doomed: Any = group.shards[1]

    def fail(*_: Any, **__: Any) -> None:
        raise PeerLostError("killed here")

    happen = doomed._happen
    if moment == "absorb":
        monkeypatch.setattr(doomed, "absorb", fail)
    elif moment == "graph":
        monkeypatch.setattr(doomed._graph, "update", fail)
    else:

        def stop(record: Any, **options: Any) -> Any:
            return fail() if record.kind == "staged" else happen(record, **options)

        monkeypatch.setattr(doomed, "_happen", stop)
    assert [r for r in group.update() if isinstance(r, PeerLostError)]
    assert [bool(s._state.inbox.taken) for s in group.shards] != [False, False] or moment == "stage"
    group.die(1)
    assert not [r for r in group.update() if isinstance(r, BaseException)]
    expected.update_knn()
    assert torch.equal(group.column("features"), y)
    for column in ("neighbor_ids", "distances"):
        assert torch.equal(group.column(column), expected.read(column, ALL)), column
    assert all(shard._state.inbox.is_empty() for shard in group.shards)


def test_a_shard_whose_rows_did_not_change_knows_after_a_death_that_its_graph_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    g = torch.Generator().manual_seed(3)
    x = torch.randn(N, D, generator=g)
    group, expected = Shards(tmp_path, 2), LocalStore(SPEC)
    group.put(x, "first")
    group.update()
    moved = ALL[:15]  # rows of shard 0 alone
    group.shards[0].put(moved, x[moved] + 1, None, ("second", 1))
    doomed: Any = group.shards[1]
    happen = doomed._happen

    def stop(record: Any, **options: Any) -> Any:
        if record.kind == "staged":
            raise PeerLostError("killed here")
        return happen(record, **options)

    monkeypatch.setattr(doomed, "_happen", stop)
    group.update()
    assert not group.shards[0]._state.is_old  # it has staged the update
    group.die(1)
    assert not [r for r in group.update() if isinstance(r, BaseException)]
    expected.put(ALL, x)
    expected.put(moved, x[moved] + 1)
    expected.update_knn()
    assert torch.equal(group.column("neighbor_ids"), expected.read("neighbor_ids", ALL))


def test_a_round_is_decided_by_the_first_shard(tmp_path: Path) -> None:
    shard, other = (logged(tmp_path / name) for name in "ab")
    for each in (shard, other):
        each.put(ALL, torch.randn(N, D, generator=torch.Generator().manual_seed(1)), None)
        each.update_knn()
        for round in (0, 1):
            each.solve(method, round, f"try {round}")
            each.publish(round, f"try {round}")
        each.solve(method, 2, "first try")
    other = logged(tmp_path / "b")
    other.settle(shard.decided())
    assert other.published() == (0, 1)
    with pytest.raises(UndecidedRoundError, match=r"round 2 is not published yet; published"):
        other.rows(ALL, ["features"], 2)
    shard.publish(2, "first try")
    assert shard.published() == (1, 2)
    other.settle(shard.decided())
    other.publish(2, "first try")  # told twice
    assert other.published() == (1, 2)
    other = logged(tmp_path / "b")
    assert other.decided() == shard.decided()
    other.solve(method, 2, "second try")
    other.settle(shard.decided())  # which has published another try
    assert logged(tmp_path / "b")._state.solved is not None


def test_a_store_has_its_own_folder_and_clears_those_before_it(tmp_path: Path) -> None:
    uri = str(tmp_path)
    (tmp_path / "notes").mkdir()
    prepare_logs(uri, "one")
    shard = Shard(SPEC, Partition.even(N, 1))
    assert not recover(shard, open_journal(uri, "one", 0))
    shard.put_labels(ALL, ALL % C, ("a", 1))
    again = Shard(SPEC, Partition.even(N, 1))
    assert recover(again, open_journal(uri, "one", 0))
    assert_same(shard, again)
    prepare_logs(uri, "two")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["notes", "two"]
    with pytest.raises(JournalError, match="logs of one are not there as seen from this node"):
        open_journal(uri, "one", 0)
    remove_log(uri, "two")
    assert [path.name for path in tmp_path.iterdir()] == ["notes"]
    remove_log(uri, "two")
    shutil.rmtree(tmp_path / "notes")
    (tmp_path / "file").touch()
    with pytest.raises(JournalError, match="cannot be written to"):
        prepare_logs(str(tmp_path / "file"), "three")


def test_shards_that_saw_different_updates_begin_anew(tmp_path: Path) -> None:
    group = Shards(tmp_path, 2)
    for name in ("first", "second"):
        group.put(torch.randn(N, D, generator=torch.Generator().manual_seed(1)), name)
        reports = group.update()
    assert not reports[0].rebuilt
    group.meet()
    group.put(torch.randn(N, D, generator=torch.Generator().manual_seed(1)), "third")
    assert not group.update()[0].rebuilt  # nobody has died
    group.die(0)
    assert isinstance(group.shards[1]._peers, Peers)
    group.put(torch.randn(N, D, generator=torch.Generator().manual_seed(2)), "fourth")
    assert group.update()[0].rebuilt
