"""Local and global consistency against dense solves, scikit-learn and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse
import torch
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.solvers import local_global, pseudo_labels
from sklearn.semi_supervised import LabelSpreading
from torch import Tensor


def dense_s(w: LocalAffinity) -> Tensor:
    matrix = torch.from_numpy(w.to_scipy().toarray())
    scale = torch.where(matrix.sum(1) > 0, matrix.sum(1).clamp(min=1e-300).rsqrt(), 0.0)
    return scale[:, None] * matrix * scale


def onehot(labels: Tensor) -> Tensor:
    y = torch.zeros(len(labels), int(labels.max()) + 1, dtype=torch.float64)
    y[labels >= 0, labels[labels >= 0]] = 1
    return y


def two_cliques(size: int) -> LocalAffinity:
    block = np.ones((size, size)) - np.eye(size)
    return LocalAffinity.from_scipy(scipy.sparse.block_diag([block, block], format="csr"))


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.99])
@pytest.mark.parametrize("balance", [False, True])
def test_scores_equal_dense_solve(
    w: LocalAffinity, labels: Tensor, alpha: float, balance: bool
) -> None:
    labels[60] = 1  # classes of different sizes
    y = onehot(labels)
    if balance:
        y = y / y.sum(0)
    eye = torch.eye(120, dtype=torch.float64)
    expected = torch.linalg.solve(eye - alpha * dense_s(w), y)
    found = local_global(w, labels, alpha=alpha, balance_classes=balance, tol=1e-13)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_spectral_radius_of_s_is_at_most_one(w: LocalAffinity) -> None:
    assert torch.linalg.eigvalsh(dense_s(w)).abs().max() <= 1 + 1e-12


@pytest.mark.parametrize("alpha", [0.2, 0.8, 0.99])
def test_labels_equal_those_of_scikit_learn(w: LocalAffinity, labels: Tensor, alpha: float) -> None:
    matrix = w.to_scipy().toarray()
    theirs = LabelSpreading(kernel=lambda *_: matrix, alpha=alpha, max_iter=20_000, tol=1e-12)
    theirs.fit(np.zeros((120, 1)), labels.numpy())
    ours = local_global(w, labels, alpha=alpha, tol=1e-12)
    rows = ours / ours.sum(1, keepdim=True)
    np.testing.assert_allclose(rows, theirs.label_distributions_, atol=1e-7)


def test_pair_by_hand() -> None:
    w = LocalAffinity.from_scipy(scipy.sparse.csr_array(np.array([[0.0, 7.0], [7.0, 0.0]])))
    f = local_global(w, torch.tensor([0, -1]), alpha=0.5, tol=1e-14)
    torch.testing.assert_close(f, torch.tensor([[4 / 3], [2 / 3]], dtype=torch.float64))


def test_label_stays_in_its_clique() -> None:
    labels = torch.full((10,), -1)
    labels[0], labels[5] = 0, 1
    f = local_global(two_cliques(5), labels)
    assert (f[:5, 1] == 0).all()
    assert (f[5:, 0] == 0).all()
    assert pseudo_labels(f, labels).labels.tolist() == [0] * 5 + [1] * 5


def test_isolated_node_keeps_only_its_own_label() -> None:
    w = LocalAffinity.from_scipy(scipy.sparse.csr_array((3, 3)))
    f = local_global(w, torch.tensor([1, -1, 0]))
    assert f.tolist() == [[0, 1], [0, 0], [1, 0]]


def test_permuting_nodes_permutes_scores(w: LocalAffinity, labels: Tensor) -> None:
    order = np.random.default_rng(0).permutation(120)
    permuted = LocalAffinity.from_scipy(w.to_scipy()[order][:, order])
    found = local_global(permuted, labels[order], tol=1e-13)
    torch.testing.assert_close(found, local_global(w, labels, tol=1e-13)[order])


def test_numpy_in_numpy_out(w: LocalAffinity, labels: Tensor) -> None:
    scores = local_global(w, labels.numpy())
    assert isinstance(scores, np.ndarray)
    spread = pseudo_labels(scores, labels.numpy())
    assert all(isinstance(part, np.ndarray) for part in vars(spread).values())
    torch.testing.assert_close(torch.from_numpy(scores), local_global(w, labels))


def test_classes_without_labels_have_zero_columns(w: LocalAffinity, labels: Tensor) -> None:
    f = local_global(w, labels, num_classes=5, balance_classes=True)
    assert f.shape == (120, 5)
    assert (f[:, 3:] == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 1.0}, "alpha must lie strictly between 0 and 1"),
        ({"num_classes": 2}, "label 2 is not below num_classes = 2"),
        ({"labels": torch.full((120,), -1)}, "no node is labeled"),
        ({"labels": torch.full((120,), -2)}, "-1 for unlabeled; got -2"),
        ({"labels": torch.zeros(7, dtype=torch.int64)}, "got 7 labels for 120 nodes"),
        ({"labels": torch.zeros(120)}, "labels must be integers of shape"),
    ],
)
def test_bad_input_is_named(
    w: LocalAffinity, labels: Tensor, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        local_global(w, **{"labels": labels, **change})  # type: ignore[arg-type]


# Pseudo-labels


def test_uniform_rows_have_weight_zero_and_certain_rows_weight_one() -> None:
    f = torch.tensor([[1.0, 1.0], [3.0, 0.0], [0.0, 0.0], [3.0, 1.0]], dtype=torch.float64)
    spread = pseudo_labels(f, torch.full((4,), -1))
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25)) / math.log(2)
    torch.testing.assert_close(
        spread.weight, torch.tensor([0.0, 1.0, 0.0, 1 - entropy], dtype=torch.float64)
    )
    assert spread.probs.tolist() == [[0.5, 0.5], [1, 0], [0.5, 0.5], [0.75, 0.25]]
    assert spread.labels.tolist() == [0, 0, 0, 0]


def test_weights_are_scaled_by_their_maximum() -> None:
    f = torch.tensor([[3.0, 1.0], [2.0, 1.0]], dtype=torch.float64)
    weight = pseudo_labels(f, torch.tensor([-1, -1])).weight
    p = torch.tensor([[0.75, 0.25], [2 / 3, 1 / 3]], dtype=torch.float64)
    omega = 1 + (p * p.log()).sum(1) / math.log(2)
    torch.testing.assert_close(weight, omega / omega.max())


def test_labeled_rows_have_their_label_and_weight_one() -> None:
    f = torch.tensor([[0.6, 0.5], [1.0, 9.0]], dtype=torch.float64)
    spread = pseudo_labels(f, torch.tensor([1, -1]))
    assert spread.labels.tolist() == [1, 1]
    assert spread.weight[0] == 1
    assert spread.probs[0].tolist() == [0, 1]


def test_negative_scores_are_clipped() -> None:
    f = torch.tensor([[-1e-9, 2.0, -3.0]], dtype=torch.float64)
    assert pseudo_labels(f, torch.tensor([-1])).probs.tolist() == [[0, 1, 0]]


def test_class_weight_is_inverse_to_counts_and_zero_for_empty_classes() -> None:
    f = torch.eye(4, dtype=torch.float64)[[0, 0, 0, 1, 2, 2]]
    f = torch.cat([f, torch.zeros(1, 4, dtype=torch.float64)])  # a row that nothing reached
    weight = pseudo_labels(f, torch.full((7,), -1)).class_weight
    torch.testing.assert_close(weight, torch.tensor([1 / 3, 1.0, 1 / 2, 0.0], dtype=torch.float64))


def test_one_class_is_certain_where_anything_arrived() -> None:
    f = torch.tensor([[0.3], [0.0]], dtype=torch.float64)
    assert pseudo_labels(f, torch.tensor([-1, -1])).weight.tolist() == [1.0, 0.0]


def test_shards_reduce_to_the_whole() -> None:
    f = torch.rand(9, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    labels = torch.tensor([0, -1, -1, 2, -1, -1, -1, 1, -1])
    whole = pseudo_labels(f, labels)
    counts = torch.bincount(whole.labels, minlength=3)
    p = f / f.sum(1, keepdim=True)
    largest = (1 + (p * p.log()).sum(1) / math.log(3)).max().reshape(1)
    part = pseudo_labels(f[:4], labels[:4], all_sum=lambda _: counts, all_max=lambda _: largest)
    torch.testing.assert_close(part.weight, whole.weight[:4])
    torch.testing.assert_close(part.class_weight, whole.class_weight)


def test_scores_must_fit_the_labels() -> None:
    with pytest.raises(ValueError, match="scores must be 2 x C"):
        pseudo_labels(torch.zeros(3, 2), torch.tensor([0, -1]))
    with pytest.raises(ValueError, match="label 5 has no column"):
        pseudo_labels(torch.zeros(2, 2), torch.tensor([5, -1]))
