"""Classes of given sizes against exact transport problems."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.graph_store.solvers import class_prior_projection
from labelmesh.graph_store.solvers.priors import class_offsets


def random_scores(n: int, num_classes: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, num_classes, generator=generator, dtype=torch.float64)


def best_total(scores: np.ndarray, sizes: list[int]) -> float:
    """Largest total score of a labeling with these class sizes: an assignment problem."""
    slots = np.repeat(np.arange(len(sizes)), sizes)
    cost = scores[:, slots]
    rows, cols = scipy.optimize.linear_sum_assignment(cost, maximize=True)
    return float(cost[rows, cols].sum())


@pytest.mark.parametrize("seed", range(6))
def test_sizes_are_exact_and_the_total_score_is_the_largest(seed: int) -> None:
    sizes = [[20, 20, 20], [50, 6, 4], [1, 1, 58], [30, 29, 1], [10, 20, 30], [2, 56, 2]][seed]
    scores = random_scores(60, 3, seed)
    unlabeled = torch.full((60,), -1)
    found = class_prior_projection(scores, unlabeled, torch.tensor(sizes) / 60, tol=0.0)
    assert torch.bincount(found.labels, minlength=3).tolist() == sizes
    total = float(scores.gather(1, found.labels[:, None]).sum())
    assert total == pytest.approx(best_total(scores.numpy(), sizes), abs=1e-9)
    assert found.error < 1e-7
    assert torch.equal(found.scores, scores + found.offsets)
    torch.testing.assert_close(found.offsets.sum(), torch.tensor(0.0, dtype=torch.float64))


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 1000),
    shares=st.lists(st.floats(0.02, 1.0), min_size=2, max_size=6),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
)
def test_sizes_follow_any_priors(seed: int, shares: list[float], scale: float) -> None:
    priors = torch.tensor(shares, dtype=torch.float64)
    priors /= priors.sum()
    scores = scale * random_scores(500, len(shares), seed)
    found = class_prior_projection(scores, torch.full((500,), -1), priors, tol=0.004)
    assert found.error <= 0.004 + 1e-12
    sizes = torch.bincount(found.labels, minlength=len(shares)).double() / 500
    torch.testing.assert_close(found.shares, sizes)


def test_adding_a_constant_to_a_row_or_a_class_changes_no_label() -> None:
    scores = random_scores(300, 4, 0)
    unlabeled, priors = torch.full((300,), -1), torch.tensor([0.1, 0.2, 0.3, 0.4])
    expected = class_prior_projection(scores, unlabeled, priors, tol=0.0).labels
    shifted = scores + 3 * random_scores(300, 1, 1) + torch.tensor([5.0, 0.0, -2.0, 1.0])
    assert torch.equal(class_prior_projection(shifted, unlabeled, priors, tol=0.0).labels, expected)


def test_permuted_classes_and_nodes_give_permuted_labels() -> None:
    scores = random_scores(300, 4, 3)
    unlabeled, priors = torch.full((300,), -1), torch.tensor([0.1, 0.2, 0.3, 0.4])
    expected = class_prior_projection(scores, unlabeled, priors, tol=0.0).labels
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    classes = torch.tensor([2, 0, 3, 1])
    found = class_prior_projection(scores[order][:, classes], unlabeled, priors[classes], tol=0.0)
    assert torch.equal(classes[found.labels], expected[order])


def test_fitting_classes_keep_their_labels() -> None:
    scores = random_scores(200, 3, 5)
    winner = scores.argmax(1)
    priors = torch.bincount(winner).double() / 200
    found = class_prior_projection(scores, torch.full((200,), -1), priors)
    assert torch.equal(found.labels, winner)
    assert (found.offsets == 0).all()


def test_labeled_nodes_keep_their_class_and_count() -> None:
    scores = random_scores(100, 2, 7)
    labels = torch.full((100,), -1)
    labels[:30] = 0
    found = class_prior_projection(scores, labels, torch.tensor([0.4, 0.6]), tol=0.0)
    assert (found.labels[:30] == 0).all()
    assert torch.bincount(found.labels).tolist() == [40, 60]
    # The ten others of class 0 are those whose scores prefer it most.
    margin = (scores[:, 0] - scores[:, 1])[30:]
    assert torch.equal(found.labels[30:] == 0, margin >= margin.sort(descending=True).values[9])


def test_class_with_too_many_labels_gets_no_others() -> None:
    labels = torch.full((100,), -1)
    labels[:50] = 0
    priors = torch.tensor([0.2, 0.4, 0.4])
    found = class_prior_projection(random_scores(100, 3, 8), labels, priors, tol=0.0)
    assert torch.bincount(found.labels).tolist() == [50, 25, 25]
    assert found.offsets[0] == -torch.inf
    assert found.error == pytest.approx(0.3)


def test_class_with_prior_zero_gets_nothing() -> None:
    priors = torch.tensor([0.5, 0.0, 0.5])
    found = class_prior_projection(random_scores(100, 3, 9), torch.full((100,), -1), priors)
    assert torch.bincount(found.labels, minlength=3).tolist() == [50, 0, 50]


def test_equal_rows_get_one_class_and_the_miss_is_told() -> None:
    scores = torch.zeros(10, 2, dtype=torch.float64)
    scores[:4, 0] = 1
    found = class_prior_projection(scores, torch.full((10,), -1), torch.tensor([0.5, 0.5]))
    assert found.labels.tolist() in ([0] * 4 + [1] * 6, [0] * 10)
    assert found.error == pytest.approx(0.1)
    same = class_prior_projection(torch.zeros(10, 2), torch.full((10,), -1), np.array([0.3, 0.7]))
    assert same.labels.tolist() == [0] * 10
    assert same.error == pytest.approx(0.7)


def test_one_class_and_numpy() -> None:
    found = class_prior_projection(np.zeros((5, 1)), np.full(5, -1), np.ones(1))
    assert isinstance(found.labels, np.ndarray)
    assert found.labels.tolist() == [0] * 5
    assert found.error == 0


def test_offsets_of_parts_that_are_summed_equal_those_of_the_whole() -> None:
    """`all_sum` alone connects shards: here the other half is added by hand."""
    scores, sizes = random_scores(400, 3, 11), torch.tensor([200.0, 400.0, 200.0]).double()
    twice = class_offsets(scores.repeat(2, 1), sizes, tol=1.0, all_sum=lambda x: x)
    half = class_offsets(scores, sizes, tol=1.0, all_sum=lambda x: 2 * x)
    torch.testing.assert_close(half, twice, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("scores", "labels", "priors", "message"),
    [
        (torch.zeros(4), [-1] * 4, [1.0], "finite numbers n x C"),
        (torch.full((4, 2), torch.nan), [-1] * 4, [0.5, 0.5], "finite numbers"),
        (torch.zeros(4, 2), [-1] * 3, [0.5, 0.5], "got 3 labels for 4 rows"),
        (torch.zeros(4, 2), [-1, 2, 0, 0], [0.5, 0.5], "label 2 has no column in 2 scores"),
        (torch.zeros(4, 2), [-1] * 4, [0.5, 0.4], "sum to 1, got .* with sum 0.9"),
        (torch.zeros(4, 2), [-1] * 4, [1.5, -0.5], "shares >= 0"),
        (torch.zeros(4, 2), [-1] * 4, [torch.nan, 0.5], "shares >= 0"),
        (torch.zeros(4, 2), [-1] * 4, [1.0], "must be 2 numbers"),
    ],
)
def test_bad_input_is_named(
    scores: torch.Tensor, labels: list[int], priors: list[float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        class_prior_projection(scores, torch.tensor(labels), torch.tensor(priors))


def test_negative_tolerance_is_refused() -> None:
    with pytest.raises(ValueError, match="tol must be >= 0, got -1"):
        class_prior_projection(torch.zeros(2, 1), torch.full((2,), -1), torch.ones(1), tol=-1.0)
