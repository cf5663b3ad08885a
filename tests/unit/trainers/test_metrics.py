"""Confusion matrices and accuracies, against scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import torch
from labelmesh.trainers.metrics import accuracy, confusion_matrix
from sklearn import metrics


def test_equals_scikit_learn_and_leaves_unknown_truth_out() -> None:
    rng = np.random.default_rng(0)
    truth, predicted = rng.integers(0, 4, 200), rng.integers(0, 4, 200)
    unknown = np.concatenate([truth, [-1, -1]])
    both = np.concatenate([predicted, [0, 3]])
    counts = confusion_matrix(torch.as_tensor(unknown), torch.as_tensor(both), 4)
    np.testing.assert_array_equal(counts.numpy(), metrics.confusion_matrix(truth, predicted))
    assert accuracy(counts) == metrics.accuracy_score(truth, predicted)


def test_nothing_to_judge_is_nan() -> None:
    assert math.isnan(accuracy(torch.zeros(3, 3, dtype=torch.int64)))
