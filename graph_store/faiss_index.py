"""Search with faiss, re-ranked so that it agrees with torch. The only importer of faiss."""

from __future__ import annotations

from jaxtyping import Float32, Int64
from torch import Tensor

from .kernels.knn import Found, Metric, knn_blocked


class FaissIndex:
    """A flat faiss index over prepared rows."""

    def __init__(
        self,
        rows: Float32[Tensor, "n D"],
        ids: Int64[Tensor, " n"],
        metric: Metric = "euclidean",
    ) -> None:
        self._rows, self._ids, self._metric = rows, ids, metric

    def search(
        self,
        queries: Float32[Tensor, "m D"],
        k: int,
        query_ids: Int64[Tensor, " m"] | None = None,
    ) -> Found:
        return knn_blocked(
            queries, self._rows, k, query_ids=query_ids, bank_ids=self._ids, metric=self._metric
        )
