"""The kNN graph of an array, in one call and one process."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from .affinity import LocalAffinity, power_affinity
from .index import Backend, make_index
from .kernels.cosine_zeros import add_zero_rows, is_zero
from .kernels.knn import Metric, knn_self_join
from .kernels.rows import prepare_rows, similarity_from_distance
from .local_view import LocalGraphView
from .solvers.arrays import Array, as_tensor, like
from .view import AffinityKind

METRICS = ("euclidean", "cosine", "inner_product")


class KnnGraph:
    """Every node's k nearest others, nearest first, ties by id.

    Attributes:
        ids: (n, k) int64; array or tensor as the input was.
        distances: (n, k) float32: Euclidean distances, ascending; for "cosine" and "inner_product"
            similarities, descending.
        metric: What "nearest" means.
        num_nodes, k: Shape of the graph.
    """

    def __init__(
        self,
        neighbor_ids: Int64[Tensor, "n k"],
        canonical: Float64[Tensor, "n k"],
        metric: Metric,
        model: Array,
    ) -> None:
        self.metric = metric
        self.num_nodes, self.k = neighbor_ids.shape
        self._neighbor_ids, self._canonical = neighbor_ids, canonical
        shown = canonical if metric == "euclidean" else self._similarity
        self.ids: Any = like(neighbor_ids, model)
        self.distances: Any = like(shown.to(torch.float32), model)

    def as_view(self) -> LocalGraphView:
        """The graph as solvers and methods see it.

        Raises:
            ValueError: An inner-product graph has no distances.
        """
        if self.metric == "inner_product":
            raise ValueError(
                'an "inner_product" graph has no distances; build it with metric="cosine" or '
                '"euclidean"'
            )
        return LocalGraphView(self._neighbor_ids, self._similarity, self._canonical, self.metric)

    def affinity(self, kind: AffinityKind, *, gamma: float = 1.0) -> LocalAffinity:
        """Symmetric weights: "power" (LPDSSL) or "self_tuning" (GLL); see `GraphView.affinity`.

        Raises:
            ValueError: Another kind, gamma <= 0, "self_tuning" of inner products, or "power" of a
                Euclidean graph.
        """
        if self.metric == "inner_product" and kind == "power":
            return power_affinity(self._neighbor_ids, self._similarity, gamma)
        return self.as_view().affinity(kind, gamma=gamma)

    @property
    def _similarity(self) -> Tensor:
        if self.metric == "inner_product":
            return -self._canonical
        return similarity_from_distance(self._canonical)


def knn_graph(
    x: Array, k: int, metric: Metric = "euclidean", backend: Backend = "auto"
) -> KnnGraph:
    """Build the exact kNN graph of the rows of `x`.

    Rows are rounded to float32 ("cosine": scaled to length 1 first) and compared by their
    distance in float64, so the graph is the same on any machine, backend and number of threads.
    Rows of zeros have no direction: under "cosine" their similarity to all rows is 0.

    Args:
        x: (n, d) numbers, numpy or torch.
        k: Neighbours of each node without itself, 1 to n - 1.
        metric: "euclidean", "cosine" or "inner_product".
        backend: "torch" or "faiss"; "auto" takes the faster one, "torch".

    Raises:
        ValueError: NaN or infinite rows (which are named), k outside 1..n-1, or an unknown option.

    Example:
        >>> import numpy as np
        >>> g = knn_graph(np.array([[0.0], [1.0], [3.0], [7.0]]), k=2)
        >>> g.ids.tolist()
        [[1, 2], [0, 2], [1, 0], [2, 1]]
        >>> g.distances.tolist()
        [[1.0, 3.0], [1.0, 2.0], [2.0, 3.0], [4.0, 6.0]]
    """
    rows = _checked_rows(x, k, metric)
    ids = torch.arange(rows.shape[0], device=rows.device)
    kept = ~is_zero(rows) if metric == "cosine" else torch.ones_like(ids, dtype=torch.bool)
    if backend in ("auto", "torch"):
        found = knn_self_join(rows[kept], k, ids[kept], metric=metric)
    else:
        found = make_index(backend, rows[kept], ids[kept], metric).search(rows[kept], k, ids[kept])
    neighbor_ids, canonical = add_zero_rows(found, kept, ids, ids[~kept], ids, k)
    return KnnGraph(neighbor_ids.to(rows.device), canonical.to(rows.device), metric, x)


def _checked_rows(x: Array, k: int, metric: Metric) -> Float32[Tensor, "n D"]:
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    features = as_tensor(x).detach()
    if features.ndim != 2 or features.is_complex():
        raise ValueError(
            f"x must be real numbers of shape (n, d), got {features.dtype} of shape "
            f"{tuple(features.shape)}"
        )
    if not 1 <= k < features.shape[0]:
        raise ValueError(
            f"k must be between 1 and {features.shape[0] - 1}, because each of the "
            f"{features.shape[0]} rows is not its own neighbour; got {k}"
        )
    if not features.is_floating_point():
        features = features.to(torch.float64)
    rows = prepare_rows(features, metric)
    bad = (~torch.isfinite(rows).all(1)).nonzero()[:, 0]
    if bad.numel():
        raise ValueError(
            f"{bad.numel()} rows contain NaN or infinity in float32: {bad[:10].tolist()}; remove "
            "or repair them"
        )
    return rows
