"""`labelmesh.GraphLabeler`: every solver as a scikit-learn classifier."""

from __future__ import annotations

import warnings
from operator import index
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .affinity import bandwidths
from .induction import LabeledRows
from .kernels.rows import Metric, prepare_rows
from .knn_graph import knn_graph
from .labeling import Propagation, Propagator

# y of -1 and 1 is read as two classes; a larger share of -1 than this may well mean something else.
_MANY_UNKNOWN = 0.9


class GraphLabeler(ClassifierMixin, BaseEstimator):
    """Labels all rows from the few that have a label, along their nearest-neighbour graph.

    `fit` labels the rows that it is given (transduction); `predict` gives a new row the mean of the
    class distributions of its nearest training rows, with the weights that it would have in the
    graph, and a training row what it has. The same input gives the same labels, on any number
    of threads.

    Args:
        method: The solver, one of `labeling.METHODS`. "poisson" is right for very few labels,
            "laplace" for many and "local_global" between; "poisson_mbo" keeps to class sizes;
            "density_paths" labels only what lies on a path.
        k: Neighbours of each row without itself; all others where there are no more than k.
        metric: "euclidean" or "cosine".
        alpha: "local_global" and "random_walk": share of the neighbours, in (0, 1); None: 0.99
            and 0.95.
        tau: "laplace" and its kin: how fast labels fade with the way; 0: not at all.
        p: "p_laplace": at least 2, the larger the less labels are spikes.
        sigma: "density_paths": longest step, as a distance.
        class_priors: Share of the rows in each of the sorted classes, if known: labels are then
            chosen such that classes have these sizes.
        tol: Relative residual of the solvers.
        backend: What searches neighbours: "auto" is exact, "ivf" approximate; see `knn_graph`.
        unlabeled: The value in `y` that means unknown. "auto" is -1, but where `y` holds just -1
            and 1 these are the two classes of a binary problem, as everywhere in scikit-learn; pass
            -1 if they are not.

    Attributes:
        classes_: Sorted classes.
        transduction_: Label of every training row: as given, as found, or -1 where no label
            arrives, because nothing connects the row to one.
        label_distributions_: (n, C) shares of the classes, rows sum to 1; zero rows where no label
            arrives.
        k_: Neighbours that were used.
        recall_: Of an approximate graph, the share of true neighbours; None where it is exact.
        n_features_in_: Width of the rows.
        feature_names_in_: Names of the columns, where `X` had any.

    Example:
        1,797 digits, ten labels of each class:

        >>> import numpy as np
        >>> from sklearn.datasets import load_digits
        >>> from labelmesh import GraphLabeler
        >>> X, truth = load_digits(return_X_y=True)
        >>> rng = np.random.default_rng(0)
        >>> given = [rng.choice(np.flatnonzero(truth == c), 10, replace=False) for c in range(10)]
        >>> y = np.full(len(X), -1)
        >>> y[np.concatenate(given)] = np.repeat(np.arange(10), 10)
        >>> est = GraphLabeler(method="laplace", k=20).fit(X, y)
        >>> bool(np.mean(est.transduction_[y == -1] == truth[y == -1]) > 0.97)
        True
        >>> bool((est.predict(X) == est.transduction_).all())
        True
    """

    # Anything may be stored, as scikit-learn's tools ask; `fit` checks.
    def __init__(
        self,
        method: Any = "poisson",
        k: Any = 20,
        metric: Any = "euclidean",
        *,
        alpha: Any = None,
        tau: Any = 0.0,
        p: Any = 3.0,
        sigma: Any = float("inf"),
        class_priors: Any = None,
        tol: Any = 1e-8,
        backend: Any = "auto",
        unlabeled: Any = "auto",
    ) -> None:
        self.method = method
        self.k = k
        self.metric = metric
        self.alpha = alpha
        self.tau = tau
        self.p = p
        self.sigma = sigma
        self.class_priors = class_priors
        self.tol = tol
        self.backend = backend
        self.unlabeled = unlabeled

    def fit(self, X: Any, y: Any) -> GraphLabeler:
        """Label the rows of `X`.

        Args:
            X: (n, d) numbers; float16 is widened.
            y: (n,) classes of any kind (numbers, strings), `unlabeled` where unknown; an array of
                strings has "-1" there.

        Raises:
            ValueError: NaN, fewer than two rows, `y` that is no labels or has none, or an option
                out of range.
        """
        how = self._how()
        if self.metric not in ("euclidean", "cosine"):
            raise ValueError(f"metric = {self.metric!r}: known are euclidean, cosine")
        X, y = validate_data(
            self, X, y, dtype=[np.float32, np.float64], order="C", ensure_min_samples=2
        )
        is_known = self._is_known(y)
        self.classes_, labels = _encode(y, is_known)
        self.k_ = min(index(self.k), len(X) - 1)
        metric: Metric = self.metric
        graph = knn_graph(_tensor(X), self.k_, metric, self.backend, slack=0)
        view = graph.as_view()
        solved = Propagator(view, how).solve(torch.from_numpy(labels), len(self.classes_))
        self.recall_ = None if graph.recall is None else graph.recall.value
        self.label_distributions_ = solved.probs.numpy()
        self.transduction_ = self._decode(solved.labels.numpy())
        self._rows = LabeledRows(
            prepare_rows(_tensor(X), metric),
            bandwidths(view.distances),
            solved.probs,
            metric,
            self.k_,
        )
        return self

    def predict(self, X: Any) -> NDArray[Any]:
        """The class of every row; -1 where no label arrives."""
        probs = self._spread(X)
        return self._decode(np.where(probs.any(axis=1), probs.argmax(axis=1), -1))

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """(m, C) shares of the classes, in the order of `classes_`; uniform where no label arrives.

        They rank rows by certainty; they are no frequencies.
        """
        probs = self._spread(X)
        arrived = probs.any(axis=1, keepdims=True)
        return np.where(arrived, probs, 1 / len(self.classes_))

    def _how(self) -> Propagation:
        priors = self.class_priors
        return Propagation(
            method=self.method,
            alpha=None if self.alpha is None else float(self.alpha),
            tau=float(self.tau),
            p=float(self.p),
            sigma=float(self.sigma),
            class_priors=None if priors is None else tuple(map(float, priors)),
            tol=float(self.tol),
        )

    def _spread(self, X: Any) -> NDArray[np.float64]:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float32, np.float64], order="C", reset=False)
        probs: NDArray[np.float64] = self._rows.spread_to(_tensor(X)).numpy()
        return probs

    def _is_known(self, y: NDArray[Any]) -> NDArray[np.bool_]:
        """Which rows have a label."""
        if self.unlabeled != "auto":
            return np.array([value != self.unlabeled for value in y.tolist()], bool)
        if y.dtype.kind == "O":
            return np.array([not _is_minus_one(value) for value in y.tolist()], bool)
        if y.dtype.kind in "US":
            return np.asarray(y.astype(str) != "-1")
        is_known = np.asarray(y != -1)
        if set(np.unique(y).tolist()) != {-1, 1}:
            return is_known
        if is_known.mean() < 1 - _MANY_UNKNOWN:
            warnings.warn(
                f"y has just -1 ({(~is_known).sum()} rows) and 1, which are taken for two "
                "classes; pass unlabeled=-1 if -1 means unknown",
                stacklevel=3,
            )
        return np.ones_like(is_known)

    def _decode(self, numbers: NDArray[np.int64]) -> NDArray[Any]:
        """Classes by number; -1 for -1, in an array of objects if the classes are no numbers."""
        found = self.classes_[numbers]
        if (numbers >= 0).all():
            return np.asarray(found)
        if found.dtype.kind not in "if":
            found = found.astype(object)
        found[numbers < 0] = -1
        return np.asarray(found)


def _encode(y: NDArray[Any], is_known: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """The classes, and the number of each row's class, -1 where unknown."""
    known = y[is_known]
    if known.dtype.kind == "O":
        known = np.array(known.tolist())
    if not len(known):
        raise ValueError(f"none of the {len(y)} rows has a label (all are -1); label a few")
    check_classification_targets(known)
    classes, numbers = np.unique(known, return_inverse=True)
    labels = np.full(len(y), -1, np.int64)
    labels[is_known] = numbers
    return classes, labels


def _is_minus_one(value: Any) -> bool:
    return bool(isinstance(value, int | float | np.number) and value == -1)


def _tensor(X: NDArray[Any]) -> torch.Tensor:
    return torch.from_numpy(X if X.flags.writeable else X.copy())
