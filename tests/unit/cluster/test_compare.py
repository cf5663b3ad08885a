"""What labels are worth without a graph: folds, and scores that are known."""

from __future__ import annotations

import numpy as np
import pytest
from labelmesh.cluster import compare
from labelmesh.cluster.compare import make_folds
from labelmesh.graph_store.labeling_round import Folds


def folds_of(labels: np.ndarray, seed: int = 0) -> Folds:
    folds = make_folds(labels, seed)
    assert isinstance(folds, Folds)
    return folds


def test_folds_are_stratified_and_leave_every_class_in() -> None:
    labels = np.concatenate([np.repeat([0, 1, 2], [11, 7, 2]), np.full(30, -1), [3]])
    folds = folds_of(labels)
    fold, classes = folds.fold.numpy(), labels[folds.node_ids.numpy()]
    assert folds.count == 5
    assert folds.node_ids.tolist() == np.flatnonzero(labels >= 0).tolist()
    sizes = np.bincount(fold[fold >= 0])
    assert sizes.max() - sizes.min() <= 1
    for c in range(3):
        counts = np.bincount(fold[classes == c], minlength=5)
        assert counts.max() - counts.min() <= 1
        assert counts.max() < (classes == c).sum()
    # The one label of class 3 is never held out.
    assert fold[classes == 3].tolist() == [-1]


def test_folds_go_by_the_seed_alone() -> None:
    labels = np.where(np.arange(200) % 3 == 0, np.arange(200) % 4, -1)
    same, other = folds_of(labels, 1), folds_of(labels, 2)
    assert folds_of(labels, 1).fold.tolist() == same.fold.tolist()
    assert other.fold.tolist() != same.fold.tolist()


def test_two_labels_of_a_class_give_two_folds() -> None:
    assert folds_of(np.array([0, 0, 1, 1, -1])).count == 2


def test_one_label_of_each_class_cannot_be_held_out() -> None:
    reason = make_folds(np.array([0, -1, 1, 2]), 0)
    assert isinstance(reason, str)
    assert reason.startswith("every class has one label, and none can be held out")


def test_of_very_many_labels_a_stratified_sample_takes_part(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compare, "MAX_LABELS", 100)
    labels = np.repeat([0, 1, 2], [600, 390, 10])
    folds = folds_of(labels)
    counts = np.bincount(labels[folds.node_ids.numpy()])
    assert counts.tolist() == [60, 39, 2]


def test_scores_are_shares_of_the_held_out_labels() -> None:
    """A line separates the classes; the rows of one class in the midst of the other fool kNN."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    x = rng.normal(size=(60, 2)).astype(np.float32)
    x[:, 0] += 8 * labels
    folds = folds_of(labels)
    held_out = labels.copy()
    held_out[:6] = -1
    scores = compare.compare(x, labels, held_out, folds, metric="euclidean")
    assert (scores.num_folds, scores.num_held_out, scores.num_used) == (5, 60, 60)
    assert scores.graph == pytest.approx(0.9)
    assert (scores.linear_probe, scores.knn, scores.knn_neighbors) == (1.0, 1.0, 5)


def test_few_labels_have_few_neighbours_and_one_class_needs_no_probe() -> None:
    labels = np.array([0, 0, 0])
    x = np.zeros((3, 1), np.float32)
    scores = compare.compare(x, labels, labels, folds_of(labels), metric="cosine")
    assert (scores.linear_probe, scores.knn, scores.knn_neighbors) == (1.0, 1.0, 2)
