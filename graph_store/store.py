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
    """Shape of a store, and how its graph is kept.

    Attributes:
        dtype: How features lie in memory; arithmetic is float32 or wider.
        backend: What searches: "auto" and "torch" are exact and follow the features, "faiss" (flat)
            is exact and searches everything each time, "ivf" is approximate.
        update: "exact": the graph follows the features (`incremental`); "refine": the old graph is
            improved until its measured recall reaches `recall_target`.
        tolerance: Lets neighbours of "exact" be up to 1 + tolerance times as far as the true ones.
        slack: Size of the lists behind "exact"; None: chosen from the drift that is seen.
    """

    num_nodes: int
    dim: int
    num_classes: int
    k: int
    metric: Metric = "cosine"
    dtype: Literal["float32", "float16"] = "float32"
    backend: Literal["auto", "torch", "faiss", "ivf"] = "auto"
    device: str = "cpu"
    update: Literal["exact", "refine"] = "exact"
    tolerance: float = 0.0
    slack: int | None = None
    recall_target: float = 0.99


@dataclass(frozen=True)
class KnnReport:
    """What an update of a graph did, over all shards.

    Attributes:
        searched: Nodes that were compared with all others.
        changed: Nodes whose neighbours or their order changed.
        exact: Whether ids and order are those of a brute force.
        recall: Share of true neighbours that were found: 1.0 where `exact`, proved where nodes may
            be `bound` away, measured on a sample (see `recall_low`) where the graph is refined.
        seconds: Wall-clock time.
        certified: Nodes whose neighbours are proved without a search.
        distances: Pairs of nodes of which a product or a distance was computed.
        rebuilt: Whether the graph was built from nothing.
        bound: No neighbour is farther than this times the true one of its rank.
        recall_low: Lower end of the measured recall's 95 % confidence interval.
    """

    searched: int
    changed: int
    exact: bool
    recall: float
    seconds: float
    certified: int = 0
    distances: int = 0
    rebuilt: bool = False
    bound: float = 1.0
    recall_low: float = 1.0


class StoreLostError(RuntimeError):
    """A shard died, and with it its rows. Restore the store from a snapshot."""


class ShardChangedError(StoreLostError):
    """The shard is not what the caller took it for; whether it is whole, it says when asked."""


class UndecidedRoundError(ValueError):
    """A round is ready on the shard that was asked, and not published as far as it knows."""


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
        ids outside 0..num_nodes-1 or twice in one call. A put during `update_knn` belongs to the
        next round, as a whole."""
        ...

    def remove(self, node_ids: Tensor) -> None:
        """Take nodes out with the next update: no neighbours, nobody's neighbour, until put again.

        Their labels stay."""
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
        "mean_weight", "seconds_solve", "seconds_publish", and the `numbers` of `fn`'s result.
        `fn` None, or a `fn` that returns None,
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
