"""The promise that every store keeps; `LocalStore` and `RayStore` fulfil it.

A round: `put` (any number of times) -> `update_knn` -> `refresh(fn, round=r)`, which publishes
round r as a whole. Readers name the round; the store keeps the last two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from torch import Tensor

from .view import GraphView, Neighborhood, NodeState, PseudoLabels

Metric = Literal["cosine", "euclidean"]
RefreshFn = Callable[[GraphView, NodeState], PseudoLabels | None]


@dataclass(frozen=True)
class StoreSpec:
    """Shape of a store. `dtype` is how features lie in memory; arithmetic is float32 or wider."""

    num_nodes: int
    dim: int
    num_classes: int
    k: int
    metric: Metric = "cosine"
    dtype: Literal["float32", "float16"] = "float32"
    backend: Literal["auto", "torch", "faiss"] = "auto"
    device: str = "cpu"


@dataclass(frozen=True)
class KnnReport:
    """What `update_knn` did. `recall` is 1.0 where the graph is exact."""

    searched: int
    changed: int
    exact: bool
    recall: float
    seconds: float


class StoreLostError(RuntimeError):
    """A shard died, and with it its rows. Restore the store from a snapshot."""


@runtime_checkable
class GraphStore(Protocol):
    """Features, probabilities, labels, kNN graph, densities and pseudo-labels, by node id.

    Tensors in, tensors out, on the CPU; ids are int64 in 0..num_nodes-1. `round=None` reads the
    latest published round, and before the first one the graph of the last `update_knn`. All write
    methods validate before anything is written.
    """

    @property
    def spec(self) -> StoreSpec: ...

    @property
    def num_shards(self) -> int: ...

    def put(self, node_ids: Tensor, features: Tensor, probs: Tensor | None = None) -> None:
        """Stage rows for the next round. Raises ValueError (ids named) on NaN/inf, wrong width,
        ids outside 0..num_nodes-1 or twice in one call."""
        ...

    def put_labels(self, node_ids: Tensor, labels: Tensor) -> None:
        """Given labels; -1 takes a label away. Labels are permanent, not per round."""
        ...

    def update_knn(self) -> KnnReport:
        """Bring the staged graph up to date with the staged features."""
        ...

    def refresh(self, fn: RefreshFn | None, *, round: int) -> Mapping[str, float]:
        """Run `fn` SPMD on the shards over the staged graph and publish `round` atomically.

        Returns global numbers: "coverage" (share of present unlabeled nodes with weight > 0),
        "mean_weight", "seconds_solve", "seconds_publish". `fn` None, or a `fn` that returns None,
        publishes the round without pseudo-labels.
        """
        ...

    def published(self) -> tuple[int, ...]:
        """Rounds that can be read, ascending; at most two."""
        ...

    def pseudo_labels(self, node_ids: Tensor, *, round: int | None = None) -> PseudoLabels: ...

    def neighbors(self, node_ids: Tensor, *, round: int | None = None) -> tuple[Tensor, Tensor]:
        """Ids and similarities, `m k` each."""
        ...

    def neighborhood(
        self, node_ids: Tensor, *, hops: int, round: int | None = None
    ) -> Neighborhood: ...

    def query(self, features: Tensor, *, k: int, round: int | None = None) -> tuple[Tensor, Tensor]:
        """Nearest stored nodes of any features: ids and similarities, `m k` each."""
        ...

    def query_neighborhood(
        self, features: Tensor, *, k: int, hops: int, round: int | None = None
    ) -> Neighborhood:
        """Like `neighborhood`, rooted at features that are no nodes (prediction)."""
        ...

    def read(self, column: str, node_ids: Tensor, *, round: int | None = None) -> Tensor:
        """Rows of "features", "probs", "labels", "density", "present", or an `extra` column."""
        ...

    def snapshot(self, uri: str) -> None:
        """Write the published rounds atomically under `uri` (any fsspec URI)."""
        ...

    def close(self) -> None: ...
