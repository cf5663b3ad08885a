from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.datasets.sampler import Plan, epoch_order, make_plan
from labelmesh.datasets.sharding import micro_batches_of, share_of


def plan_of(nodes: str, labels: torch.Tensor, **changes: object) -> Plan:
    options: dict[str, object] = {
        "batch_size": 8,
        "labeled_per_batch": 2,
        "micro_batches": 2,
        "seed": 0,
        "epoch": 0,
    }
    return make_plan(nodes, labels, **(options | changes))  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    num_nodes=st.integers(1, 70),
    num_labeled=st.integers(0, 5),
    micro_batches=st.sampled_from([1, 2, 4, 6]),
    per_micro_batch=st.integers(1, 5),
    nodes=st.sampled_from(["unlabeled", "all"]),
    epoch=st.integers(0, 3),
    has_groups=st.booleans(),
    num_ranks=st.sampled_from([1, 2, 3]),
)
def test_every_node_comes_exactly_once_on_any_number_of_ranks(
    num_nodes: int,
    num_labeled: int,
    micro_batches: int,
    per_micro_batch: int,
    nodes: str,
    epoch: int,
    has_groups: bool,
    num_ranks: int,
) -> None:
    labels = torch.full((num_nodes,), -1)
    labels[: min(num_labeled, num_nodes)] = 0
    expected = torch.arange(num_nodes) if nodes == "all" else torch.nonzero(labels < 0).flatten()
    num_ranks = num_ranks if micro_batches % num_ranks == 0 else 1
    options = {
        "batch_size": micro_batches * per_micro_batch,
        "labeled_per_batch": micro_batches,
        "micro_batches": micro_batches,
        "epoch": epoch,
        "groups": torch.arange(num_nodes) // 6 if has_groups else None,
    }
    if len(expected) < micro_batches:
        with pytest.raises(ValueError, match=r"lower train\.micro_batches"):
            plan_of(nodes, labels, **options)
        return
    plan = plan_of(nodes, labels, **options)
    parts = [
        plan.micro_batch(step, index)
        for rank in range(num_ranks)
        for step in range(plan.num_steps)
        for index in micro_batches_of(micro_batches, rank, num_ranks)
    ]
    assert min(len(part) for part in parts) > 0
    assert torch.equal(torch.cat(parts).sort().values, expected)


@pytest.mark.parametrize("num_unlabeled", [6, 7, 12, 13, 59, 60])
def test_mixed_has_its_labeled_nodes_first_and_every_unlabeled_node_once(
    num_unlabeled: int,
) -> None:
    labels = torch.cat([torch.full((num_unlabeled,), -1), torch.zeros(3).long()])
    plan = plan_of("mixed", labels)
    assert plan.num_steps == -(-num_unlabeled // 6)
    others = []
    for step in range(plan.num_steps):
        for index in range(2):
            ids = plan.micro_batch(step, index)
            assert (labels[ids[:1]] == 0).all()
            assert (labels[ids[1:]] == -1).all()
            assert len(ids) >= 2
            others.append(ids[1:])
    assert torch.equal(torch.cat(others).sort().values, torch.arange(num_unlabeled))


def test_all_batches_but_the_last_are_full() -> None:
    plan = plan_of("all", torch.full((21,), -1))
    assert [len(plan.batch(step)) for step in range(3)] == [8, 8, 5]


def test_last_batch_takes_nodes_rather_than_leave_a_micro_batch_empty() -> None:
    plan = plan_of("all", torch.full((17,), -1), micro_batches=4, labeled_per_batch=4)
    assert [len(plan.batch(step)) for step in range(3)] == [8, 5, 4]


def test_labeled_stream_uses_up_every_node_before_it_starts_again() -> None:
    labels = torch.cat([torch.full((60,), -1), torch.zeros(5).long()])
    plan = plan_of("labeled", labels, num_steps=10)
    stream = torch.cat([plan.batch(step) for step in range(10)])
    assert len(stream) == 80
    for cycle in stream.split(5):
        assert torch.equal(cycle.sort().values, torch.arange(60, 65))
    assert not torch.equal(stream[:5], stream[5:10]) or not torch.equal(stream[:5], stream[10:15])


def test_labeled_and_mixed_streams_agree_with_one_long_stream() -> None:
    """The labeled part of "mixed" is the same stream, two per step."""
    labels = torch.cat([torch.full((60,), -1), torch.zeros(5).long()])
    mixed = plan_of("mixed", labels)
    taken = torch.cat([mixed.micro_batch(s, i)[:1] for s in range(10) for i in range(2)])
    labeled = plan_of("labeled", labels, num_steps=10)
    assert torch.equal(taken, torch.cat([labeled.batch(step) for step in range(10)])[:20])


def test_labeled_phase_has_as_many_steps_as_mixed() -> None:
    labels = torch.cat([torch.full((61,), -1), torch.zeros(5).long()])
    assert plan_of("labeled", labels).num_steps == plan_of("mixed", labels).num_steps == 11


def test_labeled_phase_without_unlabeled_nodes_is_one_pass() -> None:
    assert plan_of("labeled", torch.zeros(20).long()).num_steps == 3


def test_longer_epoch_goes_on_with_another_pass_in_another_order() -> None:
    labels = torch.full((24,), -1)
    plan = plan_of("all", labels, num_steps=6)
    first = torch.cat([plan.batch(step) for step in range(3)])
    second = torch.cat([plan.batch(step) for step in range(3, 6)])
    assert torch.equal(first.sort().values, second.sort().values)
    assert not torch.equal(first, second)
    assert torch.equal(plan.batch(0), first[:8])  # asked for out of order


def test_shorter_epoch_is_cut() -> None:
    labels = torch.full((24,), -1)
    short, full = plan_of("all", labels, num_steps=2), plan_of("all", labels)
    assert short.num_steps == 2
    assert torch.equal(short.batch(1), full.batch(1))


def test_order_differs_by_seed_and_epoch_only() -> None:
    ids = torch.arange(50)
    order = epoch_order(ids, seed=1, epoch=2)
    assert torch.equal(order, epoch_order(ids, seed=1, epoch=2))
    assert not torch.equal(order, epoch_order(ids, seed=1, epoch=3))
    assert not torch.equal(order, epoch_order(ids, seed=2, epoch=2))


def test_windows_keep_a_few_shards_together() -> None:
    groups = torch.arange(60) // 10
    order = epoch_order(torch.arange(60), seed=0, epoch=0, groups=groups, window=2)
    assert torch.equal(order.sort().values, torch.arange(60))
    for window in groups[order].split(20):
        assert len(window.unique()) == 2
        assert len(window.unique_consecutive()) > 2  # mixed inside the window


def test_wrong_sizes_are_named() -> None:
    labels = torch.tensor([0, -1, -1, -1])
    with pytest.raises(ValueError, match="batch_size = 9"):
        plan_of("all", labels, batch_size=9)
    with pytest.raises(ValueError, match="no room for unlabeled"):
        plan_of("mixed", labels, batch_size=2)
    with pytest.raises(ValueError, match="none of the 3 is labeled"):
        plan_of("mixed", torch.full((3,), -1))
    with pytest.raises(ValueError, match="2 steps of 2 micro-batches"):
        plan_of("all", torch.full((16,), -1)).micro_batch(2, 0)
    with pytest.raises(ValueError, match="seed = -1"):
        plan_of("all", labels, seed=-1).batch(0)


def test_shares_are_disjoint_and_even() -> None:
    parts = [share_of(10, rank, 4) for rank in range(4)]
    assert [i for part in parts for i in part] == list(range(10))
    assert {len(part) for part in parts} == {2, 3}
    with pytest.raises(ValueError, match="does not divide micro_batches = 4"):
        micro_batches_of(4, 0, 3)
    with pytest.raises(ValueError, match=r"must be in 0\.\.1"):
        share_of(4, 2, 2)
