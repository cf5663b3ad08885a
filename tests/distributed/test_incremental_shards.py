"""A followed graph over 1, 2, 3 and 8 shards: the same bits as in one process.

The shards are threads of this process; they talk over real gloo sockets.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from labelmesh.graph_store.partition import Partition
from labelmesh.graph_store.peers import Peers
from labelmesh.graph_store.sharded_view import ShardGroup
from labelmesh.tests.fuzz.updates import (
    Case,
    State,
    check,
    follow,
    follow_on_shards,
    history,
    random_case,
    run_on_shards,
    small_blocks,
)
from torch import Tensor

CASE = Case(num_rows=130, dim=6, k=5, slack=14, kind="clustered", num_steps=7, seed=1)


def assert_same_on_shards(case: Case, size: int) -> None:
    steps = list(history(case))
    with small_blocks(case):
        alone, together = follow(case, steps), follow_on_shards(case, steps, size)
    for step, one, other in zip(steps, alone, together):
        check(case, step, other)
        if step.eta == 0:
            assert torch.equal(one.ids, other.ids)
            assert torch.equal(one.distances, other.distances)
            assert case.has_tolerance or one.report.changed == other.report.changed


@pytest.mark.parametrize(
    ("size", "kind", "steps"),
    [(1, "grid", 3), (2, "clustered", 5), (3, "clustered", 5), (3, "grid", 4), (8, "grid", 3)],
)
def test_any_number_of_shards_has_the_bits_of_one(size: int, kind: str, steps: int) -> None:
    assert_same_on_shards(replace(CASE, kind=kind, seed=size, num_steps=steps), size)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_blocks_of_any_size(share: float) -> None:
    case = replace(CASE, small_blocks=True, small_share=share, seed=6, num_rows=60, num_steps=5)
    assert_same_on_shards(case, 3)


@pytest.mark.parametrize("seed", [21, 22])
def test_random_histories(seed: int) -> None:
    case = random_case(seed)
    case = replace(case, num_rows=max(8, min(case.num_rows, 150)), num_steps=4)
    assert_same_on_shards(case, (2, 3)[seed % 2])


def test_shards_without_rows_that_take_part() -> None:
    case = replace(CASE, num_rows=9, num_steps=4)
    steps = list(history(case))
    for number, step in enumerate(steps):
        few = torch.arange(9) >= 7 - number
        steps[number] = replace(step, active=few)
    for step, state in zip(steps, follow_on_shards(case, steps, 4)):
        check(case, step, state)


def test_numbers_of_a_report_are_the_same_on_all_shards() -> None:
    steps = list(history(CASE))
    states: list[list[State]] = run_on_shards(3, lambda group: follow(CASE, steps, group))
    reports = [[replace(s.report, seconds=0.0) for s in part] for part in states]
    assert reports[0] == reports[1] == reports[2]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_peers_say_the_same_to_each(size: int) -> None:
    partition = Partition.even(10, size)
    column = torch.arange(30.0).reshape(10, 3)

    def run(group: ShardGroup) -> dict[str, object]:
        peers = Peers(partition, group.rank, group)
        own = column[slice(*partition.span(group.rank))]
        ids = torch.tensor([[9, -1], [0, group.rank]], dtype=torch.int32)
        places, (rows,) = peers.members(ids, own)
        assert torch.equal(rows[places[0, 0]], column[9])
        assert torch.equal(rows[places[1].long()], column[[0, group.rank]])
        wanted = torch.tensor([3, 3, 8])
        assert torch.equal(peers.fetch(wanted, own), column[wanted])
        part = own[: group.rank]  # as many rows as the shard's number, none on the first
        blocks = [(root, rows.clone()) for root, _, (rows,) in peers.blocks(part, block=1)]
        gathered = [peers.collect(own[:2], root) for root in range(size)]
        assert [len(parts) for parts in gathered] == [
            size if root == group.rank else 0 for root in range(size)
        ]
        return {
            "total": peers.total(group.rank + 1),
            "any": (peers.any(group.rank == size - 1), peers.any(False)),
            "largest": peers.largest(float(group.rank)),
            "counts": peers.counts(group.rank),
            "concat": peers.concat(part).tolist(),
            "blocks": [(root, rows.tolist()) for root, rows in blocks],
        }

    starts = [partition.span(r)[0] for r in range(size)]
    rows = [column[starts[r] + i].tolist() for r in range(size) for i in range(r)]
    owners = [r for r in range(size) for _ in range(r)]
    for found in run_on_shards(size, run):
        assert found == {
            "total": size * (size + 1) // 2,
            "any": (True, False),
            "largest": size - 1.0,
            "counts": list(range(size)),
            "concat": rows,
            "blocks": [(owner, [row]) for owner, row in zip(owners, rows)],
        }


def test_one_process_has_itself_only() -> None:
    peers = Peers(Partition.even(4, 1))
    column: Tensor = torch.arange(4.0)
    assert (peers.total(3), peers.any(True), peers.largest(2.5)) == (3, True, 2.5)
    assert peers.counts(4) == [4]
    assert torch.equal(peers.concat(column), column)
    assert [(r, p, c.tolist()) for r, p, (c,) in peers.blocks(column, block=3)] == [
        (0, slice(0, 3), [0.0, 1.0, 2.0]),
        (0, slice(3, 4), [3.0]),
    ]
    assert peers.fetch(torch.tensor([2, 2]), column).tolist() == [2.0, 2.0]
