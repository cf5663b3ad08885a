"""Puts belong to updates as a whole, however their messages arrive."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

import pytest
import torch
from labelmesh.graph_store import inbox as inbox_module
from labelmesh.graph_store.inbox import Inbox, Stamp, complete_puts
from labelmesh.graph_store.store import StoreSpec
from labelmesh.graph_store.table import StagingTable
from torch import Tensor

N = 12
SPEC = StoreSpec(num_nodes=N, dim=1, num_classes=2, k=1)


def table() -> StagingTable:
    return StagingTable(SPEC, N)


def write(box: Inbox, rows: Sequence[int], value: float, stamp: Stamp | None = None) -> None:
    at = torch.tensor(rows, dtype=torch.int64)
    box.write(at, {"features": torch.full((len(rows), 1), value)}, stamp)


def take(box: Inbox, of: StagingTable, complete: Sequence[str] | None) -> Tensor:
    return box.take(of, box.choose(complete))


def values(of: StagingTable) -> list[float]:
    return of.peek("features")[:, 0].tolist()


def rows_of(written: Tensor) -> list[int]:
    return written.nonzero()[:, 0].tolist()


def test_later_puts_win() -> None:
    box, t = Inbox(), table()
    write(box, [1, 2], 1.0)
    write(box, [2, 3], 2.0)
    assert rows_of(take(box, t, None)) == [1, 2, 3]
    assert values(t)[1:4] == [1.0, 2.0, 2.0]
    assert box.is_empty()
    assert rows_of(take(box, t, None)) == []


def test_what_is_late_somewhere_waits_everywhere() -> None:
    boxes, tables = [Inbox(), Inbox()], [table(), table()]
    for shard, box in enumerate(boxes):
        write(box, [0], 1.0, ("whole", 2))
        if shard == 0:
            write(box, [1], 2.0, ("half", 2))
        write(box, [2], 3.0, None)
    complete = complete_puts([box.seal() for box in boxes])
    assert complete == ("whole",)
    for box, t in zip(boxes, tables):
        assert rows_of(take(box, t, complete)) == [0, 2]
        box.mark_seen()
    assert not boxes[0].is_empty()
    write(boxes[1], [1], 2.0, ("half", 2))
    complete = complete_puts([box.seal() for box in boxes])
    assert complete == ("half",)
    for box, t in zip(boxes, tables):
        assert rows_of(take(box, t, complete)) == [1]
        assert values(t)[:3] == [1.0, 2.0, 3.0]
        assert box.is_empty()


def test_what_an_update_that_failed_has_taken_on_one_shard_the_next_one_takes_on_all() -> None:
    boxes, tables = [Inbox(), Inbox()], [table(), table()]
    for box in boxes:
        write(box, [0], 1.0, ("first", 2))
    take(boxes[0], tables[0], complete_puts([box.seal() for box in boxes]))
    write(boxes[0], [1], 2.0, ("late", 2))  # has not come to the other one
    for box in boxes:
        write(box, [0], 3.0, ("second", 2))
    complete = complete_puts([box.seal() for box in boxes])
    assert complete == ("first", "second")
    for box, t in zip(boxes, tables):
        assert rows_of(take(box, t, complete)) == [0]
        assert values(t)[:2] == [3.0, 0.0]
        box.mark_seen()
    assert [box.taken for box in boxes] == [[], []]
    assert [box.is_empty() for box in boxes] == [False, True]


def test_what_comes_after_the_seal_is_for_the_next_update() -> None:
    box, t = Inbox(), table()
    write(box, [0], 1.0, ("a", 1))
    complete = complete_puts([box.seal()])
    write(box, [1], 1.0, ("b", 1))
    write(box, [2], 1.0, None)
    assert rows_of(take(box, t, complete)) == [0]
    assert rows_of(take(box, t, complete_puts([box.seal()]))) == [1, 2]


def test_messages_may_come_twice() -> None:
    box, t = Inbox(), table()
    write(box, [0], 1.0, ("a", 1))
    write(box, [0], 1.0, ("a", 1))
    assert box.seal() == (("a", 1),)
    assert rows_of(take(box, t, ("a",))) == [0]
    box.mark_seen()
    write(box, [0], 2.0, ("b", 1))
    write(box, [0], 1.0, ("a", 1))  # long after it was taken: must not undo what came later
    assert complete_puts([box.seal()]) == ("b",)
    take(box, t, ("b",))
    assert values(t)[0] == 2.0
    assert box.is_empty()


@pytest.mark.parametrize("seed", range(5))
def test_order_of_arrival_of_different_nodes_does_not_matter(seed: int) -> None:
    """Ten puts to up to three shards, each message once or twice, in any order, two updates."""
    g = torch.Generator().manual_seed(seed)
    messages: list[tuple[int, int, Stamp]] = []
    for put in range(10):
        count = 1 + int(torch.randint(3, (1,), generator=g))
        for shard in torch.randperm(3, generator=g)[:count].tolist():
            times = 1 + int(torch.randint(2, (1,), generator=g))
            messages += [(shard, put, (f"put {put}", count))] * times
    order = torch.randperm(len(messages), generator=g).tolist()
    boxes, tables = [Inbox() for _ in range(3)], [table() for _ in range(3)]
    half = len(order) // 2
    for part in (order[:half], order[half:]):
        for number in part:
            shard, put, stamp = messages[number]
            write(boxes[shard], [put], put + 1.0, stamp)
        complete = complete_puts([box.seal() for box in boxes])
        for box, t in zip(boxes, tables):
            take(box, t, complete)
        for name in complete:  # on all its shards by now
            put = int(name.split()[1])
            for shard in {s for s, p, _ in messages if p == put}:
                assert values(tables[shard])[put] == put + 1.0
        # ... and no put is on some of its shards only.
        for put in range(10):
            on = {values(tables[s])[put] for s, p, _ in messages if p == put}
            assert len(on) == 1
    assert all(box.is_empty() for box in boxes)


def test_remembered_puts_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox_module, "STAMPS_KEPT", 3)
    box = Inbox()
    for number in range(10):
        write(box, [0], 1.0, (str(number), 1))
    assert len(box.known) == 3
    write(box, [0], 1.0, ("9", 1))
    assert len(box.seal()) == 10


def test_what_came_after_the_last_update_is_known() -> None:
    box, t = Inbox(), table()
    assert not box.has_unseen()
    write(box, [0], 1.0)
    assert box.has_unseen()
    take(box, t, None)
    write(box, [1], 1.0)  # while the update runs
    box.mark_seen()
    assert not box.has_unseen()
    assert not box.is_empty()
    write(box, [2], 1.0)
    assert box.has_unseen()


def test_it_can_be_copied() -> None:
    box, t = Inbox(), table()
    write(box, [4], 1.0, ("a", 1))
    other = pickle.loads(pickle.dumps(box))
    assert rows_of(take(other, t, ("a",))) == []  # not sealed
    assert other.seal() == (("a", 1),)
    assert rows_of(take(other, t, ("a",))) == [4]
    assert not box.is_empty()
