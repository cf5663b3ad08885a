"""Targets and weights of a batch."""

import torch
from labelmesh.graph_store.view import PseudoLabels
from labelmesh.trainers.labeling import (
    normalize_rows_to_one,
    onehot,
    targets_and_weight,
)


def test_unlabeled_rows_are_zero() -> None:
    out = onehot(torch.tensor([1, -1, 0]), 2)
    assert out.tolist() == [[0, 1], [0, 0], [1, 0]]


def test_given_labels_come_before_pseudo_labels() -> None:
    pseudo = PseudoLabels(torch.tensor([[1.0, 0.0], [0.25, 0.75]]), torch.tensor([0.1, 0.5]))
    targets, weight = targets_and_weight(torch.tensor([1, -1]), pseudo, 2)
    assert targets.tolist() == [[0, 1], [0.25, 0.75]]
    assert weight.tolist() == [1, 0.5]


def test_without_a_round_only_labeled_rows_count() -> None:
    targets, weight = targets_and_weight(torch.tensor([-1, 0]), None, 2)
    assert targets.tolist() == [[0, 0], [1, 0]]
    assert weight.tolist() == [0, 1]


def test_zero_rows_stay_zero() -> None:
    out = normalize_rows_to_one(torch.tensor([[2.0, 6.0], [0.0, 0.0]]))
    assert out.tolist() == [[0.25, 0.75], [0, 0]]
