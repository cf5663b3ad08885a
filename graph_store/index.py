"""Nearest-neighbour search behind one protocol; exact backends agree to the last bit."""

from __future__ import annotations

from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Float32, Float64, Int64
from torch import Tensor

from .kernels.knn import Found, Metric, make_bank, search_bank

Backend = Literal["auto", "torch", "faiss", "ivf"]


@runtime_checkable
class NeighborIndex(Protocol):
    """Prepared rows (see `kernels.rows.prepare_rows`) under their node ids.

    Attributes:
        is_exact: Whether all of the nearest rows are found; if not, measure the recall.
    """

    is_exact: bool

    def search(
        self,
        queries: Float32[Tensor, "m D"],
        k: int,
        query_ids: Int64[Tensor, " m"] | None = None,
    ) -> tuple[Int64[Tensor, "m k"], Float64[Tensor, "m k"]]:
        """The k nearest rows of each prepared query by (distance, id), -1/inf where fewer exist.

        `query_ids` are the nodes that the queries are; a node is not its own neighbour.
        """
        ...


class TorchIndex:
    """Exact search in torch, on the device of the rows: the oracle of the other backends."""

    is_exact = True

    def __init__(
        self,
        rows: Float32[Tensor, "n D"],
        ids: Int64[Tensor, " n"],
        metric: Metric = "euclidean",
    ) -> None:
        self._bank = make_bank(rows.contiguous(), ids, metric)

    def search(
        self,
        queries: Float32[Tensor, "m D"],
        k: int,
        query_ids: Int64[Tensor, " m"] | None = None,
    ) -> Found:
        return search_bank(self._bank, queries, k, query_ids)


def make_index(
    backend: Backend,
    rows: Float32[Tensor, "n D"],
    ids: Int64[Tensor, " n"],
    metric: Metric = "euclidean",
) -> NeighborIndex:
    """An index over prepared rows.

    "torch" and "faiss" are exact, "ivf" is not. "auto" is torch: `benchmarks/knn.py` measures it to
    be the faster one on the CPU, and on the GPU it needs no second copy of the rows.

    Raises:
        ValueError: No such backend, or faiss is not installed.
    """
    if backend in ("auto", "torch"):
        return TorchIndex(rows, ids, metric)
    if backend == "faiss":
        from .faiss_index import FaissIndex

        return FaissIndex(rows, ids, metric)
    if backend == "ivf":
        from .faiss_index import FaissIvfIndex

        return FaissIvfIndex(rows, ids, metric)
    raise ValueError(f'backend must be "auto", "torch", "faiss" or "ivf", got {backend!r}')
