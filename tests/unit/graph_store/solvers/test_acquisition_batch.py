"""Batches of nodes against going through all of them one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.graph_store.local_view import LocalGraphView
from labelmesh.graph_store.solvers.acquisition_batch import select
from torch import Tensor


def chosen(place: Tensor) -> list[int]:
    """Rows in the order of the choice."""
    rows = (place >= 0).nonzero()[:, 0]
    assert sorted(place[rows].tolist()) == list(range(len(rows)))
    return [int(row) for row in rows[torch.argsort(place[rows])]]


def near_of(view: LocalGraphView) -> list[set[int]]:
    near: list[set[int]] = [set() for _ in range(view.num_nodes)]
    for i, row in enumerate(view.neighbor_ids.tolist()):
        for j in row:
            if j >= 0:
                near[i].add(j)
                near[j].add(i)
    return near


def obvious(view: LocalGraphView, score: Tensor, among: Tensor, classes: Tensor) -> list[int]:
    """All candidates in the order of the choice."""
    near, open_ = near_of(view), [i for i in range(view.num_nodes) if among[i]]
    key = {i: (-float(score[i]), i) for i in open_}
    by_score = sorted(open_, key=key.__getitem__)
    peaks = [i for i in by_score if all(key[i] < key[j] for j in near[i] if j in key)]
    order = list(peaks)
    for i in by_score:
        if i not in order and not near[i] & set(order):
            order.append(i)
    apart = set(order)
    order += [i for i in by_score if i not in apart]
    seen: dict[int, int] = {}
    turn = {}
    for i in order:
        turn[i] = seen[int(classes[i])] = seen.get(int(classes[i]), -1) + 1
    return sorted(order, key=turn.__getitem__)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.sampled_from([2, 7, 10**6]), st.integers(1, 4))
def test_choice_is_that_of_an_obvious_search(seed: int, k: int, levels: int, size: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(-1, 30, (30, k), generator=generator)
    ids[ids == torch.arange(30)[:, None]] = -1
    view = LocalGraphView(ids, torch.zeros(30, k), torch.zeros(30, k))
    score = torch.randint(levels, (30,), generator=generator).double()
    among = torch.rand(30, generator=generator) < 0.7
    among[3] = True
    classes = torch.randint(size, (30,), generator=generator)
    expected = obvious(view, score, among, classes)
    for count in {1, len(expected) // 2 + 1, len(expected)} - {0}:
        place = select(view, score, count, among=among, classes=classes, num_classes=size)
        assert chosen(place) == expected[:count]


def test_by_score_alone() -> None:
    # A path of five nodes.
    view = LocalGraphView(
        torch.tensor([[1], [2], [3], [4], [-1]]), torch.zeros(5, 1), torch.zeros(5, 1)
    )
    score, among = torch.tensor([1.0, 5.0, 4.0, 3.0, 9.0]), torch.arange(5) < 4
    assert chosen(select(view, score, 3, among=among, apart=False)) == [1, 2, 3]
    # 1 is a peak, 3 is not next to it, then the best of the others.
    assert chosen(select(view, score, 4, among=among)) == [1, 3, 2, 0]


def test_classes_take_turns_until_one_has_no_more() -> None:
    nobody = torch.full((6, 1), -1)
    view = LocalGraphView(nobody, torch.zeros(6, 1), torch.zeros(6, 1))
    score, classes = torch.tensor([9.0, 8.0, 7.0, 6.0, 1.0, 0.0]), torch.tensor([0, 0, 0, 0, 1, 2])
    among = torch.ones(6, dtype=torch.bool)
    place = select(view, score, 5, among=among, classes=classes, num_classes=3)
    assert chosen(place) == [0, 4, 5, 1, 2]


def test_what_cannot_be_chosen(view: LocalGraphView) -> None:
    among, score = torch.arange(120) < 7, torch.rand(120, generator=torch.Generator())
    with pytest.raises(ValueError, match="count = 8, but only 7 nodes are unlabeled"):
        select(view, score, 8, among=among)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        select(view, score, 0, among=among)
    with pytest.raises(ValueError, match="must be finite"):
        select(view, torch.where(among, torch.inf, score), 2, among=among)
    with pytest.raises(ValueError, match=r"classes must be in 0\.\.1"):
        select(view, score, 2, among=among, classes=torch.full((120,), 2), num_classes=2)
