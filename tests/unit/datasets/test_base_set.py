"""Base rows: balanced, a function of seed and position, never all of a class."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.datasets.base_set import BaseSet, highest_per_class

LABELS = torch.tensor([2, 0, -1, 1, 0, 2, 1, 0, -1, 0, 2, 1, 0, 0, 1, 2, -1, 0])


def counts(ids: torch.Tensor) -> list[int]:
    return torch.bincount(LABELS[ids], minlength=3).tolist()


@pytest.mark.parametrize(("per_class", "expected"), [(1, [1, 1, 1]), (2, [2, 2, 2])])
def test_every_class_gives_as_many(per_class: int, expected: list[int]) -> None:
    drawn = BaseSet(LABELS, per_class, seed=0, epoch=3).take(0, 0)
    assert counts(drawn) == expected
    assert torch.equal(drawn, drawn.unique())


def test_half_of_a_class_is_left_to_train_on() -> None:
    drawn = BaseSet(LABELS, 100, seed=0, epoch=0).take(0, 0)
    assert torch.bincount(LABELS[LABELS >= 0]).tolist() == [7, 4, 4]
    assert counts(drawn) == [3, 2, 2]


def test_a_single_label_is_a_base_row() -> None:
    labels = torch.tensor([-1, 0, 1, 1])
    assert BaseSet(labels, 5, seed=0, epoch=0).take(0, 0)[0] == 1


def test_an_epoch_has_one_set_unless_each_step_has_its_own() -> None:
    whole, each = (BaseSet(LABELS, 2, seed=1, epoch=2, every=e) for e in ("epoch", "step"))
    places = [(step, index) for step in range(4) for index in range(2)]
    assert len({tuple(whole.take(*p).tolist()) for p in places}) == 1
    assert len({tuple(each.take(*p).tolist()) for p in places}) > 4


def test_epochs_and_seeds_draw_other_rows() -> None:
    sets = {
        tuple(BaseSet(LABELS, 2, seed=seed, epoch=epoch).take(0, 0).tolist())
        for seed in range(3)
        for epoch in range(3)
    }
    assert len(sets) > 6


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 99), step=st.integers(0, 9), index=st.integers(0, 3))
def test_a_step_can_be_asked_for_by_itself(seed: int, step: int, index: int) -> None:
    def make() -> BaseSet:
        return BaseSet(LABELS, 2, seed=seed, epoch=1, every="step")

    goes_on = make()
    for earlier in range(step):
        goes_on.take(earlier, index)
    assert torch.equal(goes_on.take(step, index), make().take(step, index))


def test_highest_scores_come_first_and_ties_go_to_the_lower_id() -> None:
    score = torch.zeros(len(LABELS))
    score[torch.tensor([13, 10, 2])] = torch.tensor([3.0, 2.0, 9.0])  # node 2 has no label
    drawn = BaseSet(LABELS, 2, seed=0, epoch=0, score=score).take(5, 1)
    # class 0: 13 then 1; class 1: 3 and 6; class 2: 10 then 0
    assert drawn.tolist() == [0, 1, 3, 6, 10, 13]


def test_all_labels_of_a_class_may_be_asked_for() -> None:
    score = torch.arange(len(LABELS), dtype=torch.float32)
    everything = highest_per_class(LABELS, 100, score)
    assert everything.tolist() == (LABELS >= 0).nonzero().flatten().tolist()
    assert highest_per_class(LABELS, 2, score).tolist() == [10, 11, 13, 14, 15, 17]
    assert highest_per_class(LABELS, 1, -score).tolist() == [0, 1, 3]


def test_no_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="none of the 3 nodes is labeled"):
        BaseSet(torch.full((3,), -1), 1, seed=0, epoch=0)
