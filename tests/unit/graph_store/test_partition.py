"""Ids to shards."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from labelmesh.graph_store.partition import Partition, distinct_ids, route


def test_ranges_are_even_and_cover_all_nodes() -> None:
    assert Partition.even(10, 4).bounds == (0, 2, 5, 7, 10)


@pytest.mark.parametrize("num_shards", [0, 11])
def test_every_shard_owns_a_node(num_shards: int) -> None:
    with pytest.raises(ValueError, match=f"num_shards = {num_shards} must lie in 1..num_nodes"):
        Partition.even(10, num_shards)


@given(st.integers(1, 40), st.data())
def test_owner_is_the_shard_whose_span_holds_the_id(num_nodes: int, data: st.DataObject) -> None:
    partition = Partition.even(num_nodes, data.draw(st.integers(1, num_nodes)))
    owners = partition.owner(torch.arange(num_nodes)).tolist()
    for node, owner in enumerate(owners):
        start, stop = partition.span(owner)
        assert start <= node < stop


@given(st.integers(1, 40), st.data())
def test_route_asks_each_owner_once_for_each_id(num_nodes: int, data: st.DataObject) -> None:
    partition = Partition.even(num_nodes, data.draw(st.integers(1, num_nodes)))
    asked = torch.tensor(
        data.draw(st.lists(st.integers(0, num_nodes - 1), max_size=60)), dtype=torch.int64
    )
    plan = route(partition, asked)
    for shard, ids in plan.requests():
        assert partition.owner(ids).eq(shard).all()
    sent = torch.cat([asked[:0], *(ids for _, ids in plan.requests())])
    assert sent.tolist() == sorted(set(asked.tolist()))
    assert torch.equal(plan.restore(sent * 10), asked * 10)


@pytest.mark.parametrize("num_nodes", [8, 10_000], ids=["by table", "by sorting"])
def test_distinct_ids_leave_out_those_that_are_none(num_nodes: int) -> None:
    distinct, position = distinct_ids(torch.tensor([[5, -1], [2, 5], [-1, 7]]), num_nodes)
    assert distinct.tolist() == [2, 5, 7]
    assert position.tolist() == [[1, -1], [0, 1], [-1, 2]]


@pytest.mark.parametrize("num_nodes", [2, 10_000], ids=["by table", "by sorting"])
def test_no_ids_are_no_distinct_ids(num_nodes: int) -> None:
    distinct, position = distinct_ids(torch.tensor([[-1], [-1]]), num_nodes)
    assert distinct.shape == (0,)
    assert position.tolist() == [[-1], [-1]]
