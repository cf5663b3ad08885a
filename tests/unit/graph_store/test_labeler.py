"""`GraphLabeler`: scikit-learn's own checks, scikit-learn's own solver, and odd input."""

from __future__ import annotations

import doctest
import pickle
from typing import Any

import numpy as np
import pytest
from labelmesh import knn_graph
from labelmesh.graph_store import labeler
from labelmesh.graph_store.labeler import GraphLabeler
from labelmesh.graph_store.labeling import METHODS
from sklearn.datasets import load_digits
from sklearn.exceptions import NotFittedError
from sklearn.semi_supervised import LabelSpreading
from sklearn.utils.estimator_checks import check_estimator


def blobs(num_per_class: int = 40, seed: int = 0) -> tuple[Any, Any, Any]:
    """Features, two labels per class and truth of three clusters that touch."""
    rng = np.random.default_rng(seed)
    truth = np.repeat(np.arange(3), num_per_class)
    centers = np.array([[0.0, 4.0, 0.0], [4.0, 0.0, 0.0], [0.0, 0.0, 4.0]])
    x = centers[truth] + rng.normal(size=(len(truth), 3))
    y = np.full(len(truth), -1)
    given = np.concatenate([rng.choice(np.flatnonzero(truth == c), 2, False) for c in range(3)])
    y[given] = truth[given]
    return x, y, truth


@pytest.mark.parametrize("method", METHODS)
def test_all_checks_of_scikit_learn_pass(method: str) -> None:
    found = check_estimator(GraphLabeler(method=method), on_skip=None)
    assert {check["status"] for check in found} <= {"passed", "skipped"}
    # The one that is skipped asks for arrays on other devices.
    assert sum(check["status"] == "skipped" for check in found) <= 1


def test_example() -> None:
    failed, tried = doctest.testmod(labeler)
    assert tried > 5
    assert failed == 0


@pytest.mark.parametrize("alpha", [0.5, 0.9, 0.99])
def test_local_global_is_label_spreading_on_the_same_affinity(alpha: float) -> None:
    x, y, _ = blobs()
    affinity = knn_graph(x, k=8).affinity("self_tuning").to_scipy().toarray()
    theirs = LabelSpreading(lambda a, b: affinity, alpha=alpha, max_iter=5000, tol=1e-10)
    theirs.fit(x, y)
    ours = GraphLabeler("local_global", k=8, alpha=alpha, tol=1e-12).fit(x, y)
    unknown = y < 0
    np.testing.assert_array_equal(ours.transduction_[unknown], theirs.transduction_[unknown])
    np.testing.assert_allclose(
        ours.label_distributions_[unknown], theirs.label_distributions_[unknown], atol=1e-7
    )


@pytest.mark.parametrize("method", METHODS)
def test_training_rows_are_predicted_as_they_were_labeled(method: str) -> None:
    x, y, _ = blobs()
    est = GraphLabeler(method, k=8).fit(x, y)
    np.testing.assert_array_equal(est.predict(x), est.transduction_)
    reached = est.transduction_ >= 0
    np.testing.assert_array_equal(est.predict_proba(x)[reached], est.label_distributions_[reached])
    np.testing.assert_array_equal(est.transduction_[y >= 0], y[y >= 0])
    np.testing.assert_array_equal(est.label_distributions_[y >= 0], np.eye(3)[y[y >= 0]])
    np.testing.assert_allclose(est.label_distributions_[reached].sum(1), 1, rtol=1e-12)
    np.testing.assert_array_equal(
        est.label_distributions_[reached].argmax(1), est.transduction_[reached]
    )


def test_new_rows_get_the_labels_around_them() -> None:
    x, truth = load_digits(return_X_y=True)
    train, test = np.arange(0, 1200), np.arange(1200, 1797)
    y = np.full(1200, -1)
    for c in range(10):
        y[np.flatnonzero(truth[:1200] == c)[:10]] = c
    est = GraphLabeler("laplace", k=15).fit(x[train], y)
    known = (est.transduction_[y < 0] == truth[train][y < 0]).mean()
    assert est.score(x[test], truth[test]) > known - 0.06
    # One row at a time gives the same bits as all at once.
    singly = [est.predict_proba(row[None]) for row in x[test][:5]]
    np.testing.assert_array_equal(est.predict_proba(x[test])[:5], np.concatenate(singly))


def test_a_row_far_from_all_goes_to_the_nearest() -> None:
    x, y, _ = blobs()
    est = GraphLabeler(k=8).fit(x, y)
    far = np.array([[0.0, 1e6, 0.0], [1e6, 0.0, 0.0], [0.0, 0.0, 1e6]])
    np.testing.assert_array_equal(est.predict(far), [0, 1, 2])
    np.testing.assert_allclose(est.predict_proba(far).sum(1), 1)


def test_classes_may_be_anything() -> None:
    x, y, _ = blobs()
    plain = GraphLabeler(k=8).fit(x, y)
    names = np.array(["ant", "bee", "cat"])
    mixed = np.array([None] * len(y), object)
    mixed[:] = [-1 if c < 0 else names[c] for c in y]
    for named in (mixed, mixed.astype(str)):
        est = GraphLabeler(k=8).fit(x, named)
        assert est.classes_.tolist() == names.tolist()
        np.testing.assert_array_equal(est.transduction_, names[plain.transduction_])
        np.testing.assert_array_equal(est.label_distributions_, plain.label_distributions_)
    numbers = np.array([7.0, 40.0, 1000.0])
    est = GraphLabeler(k=8).fit(x, np.where(y < 0, -1.0, numbers[y]))
    np.testing.assert_array_equal(est.predict(x), numbers[plain.transduction_])
    est = GraphLabeler(k=8, unlabeled="?").fit(x, np.where(y < 0, "?", names[y]))
    np.testing.assert_array_equal(est.transduction_, names[plain.transduction_])


def test_minus_one_and_one_are_two_classes_unless_told_otherwise() -> None:
    x, _, truth = blobs()
    y = np.where(truth == 0, -1, 1)
    assert GraphLabeler(k=8).fit(x, y).classes_.tolist() == [-1, 1]
    one = GraphLabeler(k=8, unlabeled=-1).fit(x, y)
    assert one.classes_.tolist() == [1]
    assert set(one.transduction_.tolist()) <= {1, -1}
    few = np.where(np.arange(len(x)) < 3, 1, -1)
    with pytest.warns(UserWarning, match="pass unlabeled=-1 if -1 means unknown"):
        GraphLabeler(k=8).fit(x, few)


def test_what_no_label_reaches_stays_unknown() -> None:
    x, y, truth = blobs()
    x[truth == 2] += 1e3
    y[truth == 2] = -1
    est = GraphLabeler("laplace", k=5).fit(x, y)
    assert set(est.transduction_[truth == 2].tolist()) == {-1}
    assert not est.label_distributions_[truth == 2].any()
    assert est.predict(x[truth == 2] + 1e-3).tolist() == [-1] * 40
    np.testing.assert_array_equal(est.predict_proba(x[truth == 2]), 0.5)
    names = np.array(["a", "b", "-1"])[y]
    named = GraphLabeler("laplace", k=5).fit(x, names)
    assert set(named.transduction_.tolist()) == {"a", "b", -1}


@pytest.mark.parametrize("method", METHODS)
def test_few_rows_duplicates_and_one_class(method: str) -> None:
    two = GraphLabeler(method).fit([[0.0], [1.0]], [3, -1])
    assert two.k_ == 1
    assert two.transduction_.tolist() in ([3, 3], [3, -1])
    same = GraphLabeler(method, k=3).fit(np.zeros((10, 2)), [0, 1] + [-1] * 8)
    assert same.transduction_[:2].tolist() == [0, 1]
    assert set(same.transduction_.tolist()) <= {0, 1, -1}
    np.testing.assert_allclose(same.predict_proba(np.zeros((1, 2))).sum(), 1.0)


def test_float16_is_widened_and_cosine_takes_rows_of_zeros() -> None:
    x, y, _ = blobs()
    half = x.astype(np.float16)
    a, b = (GraphLabeler(k=8).fit(rows, y) for rows in (half, half.astype(np.float64)))
    np.testing.assert_array_equal(a.label_distributions_, b.label_distributions_)
    x[5] = 0
    est = GraphLabeler(k=8, metric="cosine").fit(x, y)
    np.testing.assert_array_equal(est.predict(x), est.transduction_)
    np.testing.assert_array_equal(est.predict(7 * x), est.transduction_)


@pytest.mark.parametrize("method", ["poisson", "laplace", "poisson_mbo"])
def test_classes_have_the_sizes_that_are_asked_for(method: str) -> None:
    x, y, _ = blobs()
    priors = [0.5, 0.3, 0.2]
    est = GraphLabeler(method, k=8, class_priors=priors).fit(x, y)
    np.testing.assert_allclose(np.bincount(est.transduction_) / len(x), priors, atol=0.02)


def test_it_survives_pickling_and_is_the_same_twice() -> None:
    x, y, _ = blobs()
    est = GraphLabeler(k=8).fit(x, y)
    again = pickle.loads(pickle.dumps(est))
    np.testing.assert_array_equal(again.predict_proba(x + 0.1), est.predict_proba(x + 0.1))
    twice = GraphLabeler(k=8).fit(x, y)
    np.testing.assert_array_equal(twice.label_distributions_, est.label_distributions_)


def test_approximate_neighbours_tell_their_recall() -> None:
    pytest.importorskip("faiss")
    x, y, _ = blobs()
    assert GraphLabeler(k=8).fit(x, y).recall_ is None
    assert GraphLabeler(k=8, backend="ivf").fit(x, y).recall_ > 0.5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"method": "voting"}, "method = 'voting': known are poisson"),
        ({"metric": "hamming"}, "metric = 'hamming': known are euclidean, cosine"),
        ({"k": 0}, "k must be between 1 and 119"),
        ({"method": "local_global", "alpha": 1.0}, "alpha"),
        ({"class_priors": [0.5, 0.5]}, "class_priors must be 3 numbers"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], sentence: str) -> None:
    x, y, _ = blobs()
    with pytest.raises(ValueError, match=sentence):
        GraphLabeler(**options).fit(x, y)


def test_wrong_input_is_named() -> None:
    x, y, _ = blobs()
    with pytest.raises(ValueError, match="none of the 120 rows has a label"):
        GraphLabeler().fit(x, np.full_like(y, -1))
    with pytest.raises(ValueError, match="Unknown label type"):
        GraphLabeler().fit(x, y + 0.5)
    x[3, 1] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        GraphLabeler().fit(x, y)
    with pytest.raises(NotFittedError):
        GraphLabeler().predict(x)
