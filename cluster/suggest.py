"""`labelmesh.suggest`: which samples to label next, of an array or of a finished run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ..graph_store.kernels.knn import Metric
from ..graph_store.knn_graph import knn_graph
from ..graph_store.labeling import Propagation, Propagator
from ..graph_store.solvers.arrays import Array, as_labels, as_tensor
from ..graph_store.suggest import Wanted, suggest_nodes
from ..graph_store.view import GraphView

if TYPE_CHECKING:
    import pyarrow as pa

_NEEDS_LABELS = ("uncertainty", "local_max")


@dataclass(frozen=True)
class Suggestions:
    """What to label next, best first.

    Attributes:
        node_ids: (m,) rows of the features, or nodes of the run.
        scores: (m,) what made them be chosen; comparable inside one call.
        labels: (m,) likeliest class as far as it is known; -1: nothing is.
        confidence: (m,) its share of the class distribution, in [0, 1].
        keys: (m,) names of the samples, where they have any.
        classes: Names of the classes 0, 1, ..., where they have any.
    """

    node_ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    confidence: NDArray[np.float64]
    keys: NDArray[Any] | None = None
    classes: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.node_ids)

    def label_names(self) -> list[str]:
        """The classes as people read them; "" where nothing is known."""
        return [
            "" if label < 0 else str(label if self.classes is None else self.classes[label])
            for label in self.labels.tolist()
        ]

    def to_table(self) -> pa.Table:
        """A row per suggestion, best first: `rank` from 1, `key` (or `row`), `score`, `label`,
        `class` (where classes have names), `confidence`."""
        import pyarrow as pa

        columns = {
            "rank": pa.array(np.arange(1, len(self) + 1)),
            "row" if self.keys is None else "key": pa.array(
                self.node_ids if self.keys is None else self.keys
            ),
            "score": pa.array(self.scores),
            "label": pa.array(self.labels),
        }
        if self.classes is not None:
            columns["class"] = pa.array(self.label_names())
        return pa.table({**columns, "confidence": pa.array(self.confidence)})


def suggest(
    features_or_run: Any,
    labels: Array | None = None,
    *,
    count: int = 50,
    method: str | None = None,
    criterion: str = Wanted.criterion,
    k: int = 20,
    metric: str = "euclidean",
    measure: str = Wanted.measure,
    balance: bool = False,
    seed: int = 0,
) -> Suggestions:
    """Choose the samples whose labels would help most.

    Args:
        features_or_run: (n, d) numbers, or the folder or URI of a finished run.
        labels: (n,) classes from 0, -1 = unlabeled. For a run they add to the labels that it had.
            Without any label, "sigma_opt", "vopt" and "model_change" say where to begin.
        method: How class distributions are found, see `graph_store.labeling`; default "poisson".
            For a run the default is what the run itself says: the mean of what its network and
            its graph say, so that where they disagree is uncertain.
        criterion: "model_change": where a label tells most about other nodes, times uncertainty;
            "sigma_opt", "vopt": where it tells most, whatever the classes; "local_max":
            the least certain that are not next to each other; "uncertainty": the least certain.
        k, metric: Of the features' graph; a run has its own.
        measure: Of uncertainty: "margin", "entropy" or "l2".
        balance: Predicted classes take turns.
        seed: Of the probes that follow variance.

    Raises:
        ValueError: Fewer unlabeled samples than `count`, no labels where the criterion needs
            some, arrays that do not fit, unknown names, or no finished run with a graph.

    Example:
        Two clusters, a label in one of them: the first question is about the other.

        >>> x = np.array([[0.0], [0.1], [0.2], [0.3], [9.0], [9.1], [9.2], [9.3]])
        >>> y = np.array([0, -1, -1, -1, -1, -1, -1, -1])
        >>> int(suggest(x, y, count=1, k=2).node_ids[0]) in (4, 5, 6, 7)
        True
    """
    wanted = Wanted(criterion, measure, balance, seed=seed)
    if isinstance(features_or_run, str) or hasattr(features_or_run, "__fspath__"):
        from .suggest_run import load_run, suggest_of_run

        run = load_run(str(features_or_run))
        return suggest_of_run(run, labels, count=count, method=method, wanted=wanted)
    return _suggest_of_features(
        features_or_run, labels, count, Propagation(method or "poisson"), k, metric, wanted
    )


def choose(
    view: GraphView,
    probs: torch.Tensor,
    labels: torch.Tensor,
    present: torch.Tensor,
    *,
    count: int,
    wanted: Wanted,
) -> Suggestions:
    """Suggestions from a graph in one process and what is known about its nodes."""
    if wanted.criterion in _NEEDS_LABELS and not bool((labels >= 0).any()):
        raise ValueError(
            f'criterion "{wanted.criterion}" needs labels to be uncertain about, and there is '
            'none; use "sigma_opt", or label a few'
        )
    among = (labels < 0) & present
    choice = suggest_nodes(view, probs, among=among, count=count, wanted=wanted)
    chosen = (choice.place >= 0).nonzero()[:, 0]
    order = chosen[torch.argsort(choice.place[chosen])]
    share, label = probs[order].to(torch.float64).max(1)
    return Suggestions(
        order.numpy(),
        choice.score[order].numpy(),
        torch.where(share > 0, label, -1).numpy(),
        share.clamp(max=1).numpy(),
    )


def _suggest_of_features(
    features: Array,
    labels: Array | None,
    count: int,
    how: Propagation,
    k: int,
    metric: str,
    wanted: Wanted,
) -> Suggestions:
    x = as_tensor(features)
    given = torch.full((len(x),), -1) if labels is None else as_labels(labels)
    if len(given) != len(x):
        raise ValueError(
            f"{len(x)} rows of features but {len(given)} labels; give one per row, -1 = unlabeled"
        )
    classes, numbers = torch.unique(given[given >= 0], return_inverse=True)
    encoded = given.masked_scatter(given >= 0, numbers)
    view = knn_graph(x, k, cast(Metric, metric), slack=0).as_view()
    # Where no label is there is one class, about which nothing is known.
    probs = torch.zeros(len(x), 1, dtype=torch.float64)
    if len(classes):
        probs = Propagator(view, how).solve(encoded, len(classes)).probs
    present = torch.ones(len(x), dtype=torch.bool)
    found = choose(view, probs, encoded, present, count=count, wanted=wanted)
    decoded = [-1 if label < 0 else int(classes[label]) for label in found.labels]
    return replace(found, labels=np.array(decoded, np.int64))
