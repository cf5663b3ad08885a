"""What a method sees of the graph: the rows that live here, and the only ways to reach the others.

The same method code runs in one process and on any number of shards, because both offer this
protocol: `local_view.LocalGraphView` and `sharded_view.ShardedGraphView`.

Shape letters: N all nodes, n nodes of this shard, k neighbours, C classes, D feature width, m ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from .kernels.csr import Csr

Reduce = Literal["sum", "amax"]
AffinityKind = Literal["power", "self_tuning"]


@runtime_checkable
class Affinity(Protocol):
    """Own rows of a symmetric, non-negative weight matrix W with zero diagonal.

    The columns of `csr` index a buffer of own rows and of those of other shards that they have
    weights to (the halo); `extend` fills it. In one process the buffer is the column itself.

    Attributes:
        num_nodes: N, over all shards.
        node_ids: Ids of the own rows, ascending.
        degrees: Row sums of W for the own rows.
        csr: The own rows' weights.
        own_columns: Where the own rows lie in the buffer.
    """

    num_nodes: int

    @property
    def node_ids(self) -> Int64[Tensor, " n"]: ...

    @property
    def degrees(self) -> Float[Tensor, " n"]: ...

    @property
    def csr(self) -> Csr: ...

    @property
    def own_columns(self) -> slice: ...

    def extend(self, f: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "num_cols ..."]:
        """The buffer for the column whose own rows are `f`. Collective: one exchange."""
        ...

    def matmul(self, f: Float[Tensor, "n C"]) -> Float[Tensor, "n C"]:
        """Own rows of W F, for the column block whose own rows are `f`. Collective."""
        ...

    def gather(self, x: Shaped[Tensor, "n ..."], ids: Int64[Tensor, " m"]) -> Tensor:
        """See `GraphView.gather`. Collective."""
        ...

    def scatter(
        self, x: Shaped[Tensor, "m ..."], ids: Int64[Tensor, " m"], out: Tensor, reduce: Reduce
    ) -> Tensor:
        """See `GraphView.scatter`. Collective."""
        ...

    def all_sum(self, x: Tensor) -> Tensor:
        """Sum of `x` over all shards, in shard order. Collective."""
        ...

    def all_max(self, x: Tensor) -> Tensor:
        """Elementwise maximum of `x` over all shards. Collective."""
        ...


@runtime_checkable
class GraphView(Protocol):
    """A k-nearest-neighbour graph of which the rows `node_ids` live here.

    All methods are collective: every shard calls them in the same order.

    Attributes:
        num_nodes: N, over all shards. Node ids are 0..N-1.
        node_ids: Ids of the own rows, ascending.
        neighbor_ids: Global ids, without self, nearest first, ties by id; -1 where there is none.
        similarity: Inner product of unit features (cosine graphs), 1 - d^2/2 of the stored rows
            otherwise; 0 where `neighbor_ids` is -1.
        distances: Euclidean distance of the rows that the graph was built on (unit rows for
            cosine); inf where `neighbor_ids` is -1.
    """

    num_nodes: int
    node_ids: Int64[Tensor, " n"]
    neighbor_ids: Int64[Tensor, "n k"]
    similarity: Float[Tensor, "n k"]
    distances: Float[Tensor, "n k"]

    def affinity(self, kind: AffinityKind, *, gamma: float = 1.0) -> Affinity:
        """Symmetric weights over the edges.

        "power": A = max(0, similarity)^gamma, W = A + A^T (LPDSSL).
        "self_tuning": w = exp(-4 d^2 / (eps_i eps_j)) over the union of edges, eps = distance
        to the k-th neighbour (GLL).
        """
        ...

    def gather(self, x: Shaped[Tensor, "n ..."], ids: Int64[Tensor, " m"]) -> Tensor:
        """Rows `ids` (global) of the column whose own rows are `x`."""
        ...

    def scatter(
        self, x: Shaped[Tensor, "m ..."], ids: Int64[Tensor, " m"], out: Tensor, reduce: Reduce
    ) -> Tensor:
        """Reduce `x[j]` into row `ids[j]` of the column with own rows `out`; returns own rows."""
        ...

    def all_sum(self, x: Tensor) -> Tensor:
        """Sum of `x` over all shards, in shard order, the same on every shard."""
        ...

    def all_max(self, x: Tensor) -> Tensor:
        """Elementwise maximum of `x` over all shards."""
        ...


@dataclass(frozen=True)
class NodeState:
    """The own rows of the store's columns, as `GraphStore.refresh` hands them to a method.

    Attributes:
        features: As put (not normalised).
        probs: The network's class probabilities, as put; one-hot for labeled nodes.
        labels: Given labels, -1 = unlabeled.
        density: Mean similarity to the k neighbours.
        present: False for nodes whose features were never put (unreadable samples); they have
            no edges and must get weight 0.
        last: What the round before says about these nodes; None where there is none.
    """

    features: Float[Tensor, "n D"]
    probs: Float[Tensor, "n C"]
    labels: Int64[Tensor, " n"]
    density: Float[Tensor, " n"]
    present: Bool[Tensor, " n"]
    last: PseudoLabels | None = None

    @property
    def labeled(self) -> Bool[Tensor, " n"]:
        return self.labels >= 0


@dataclass(frozen=True)
class PseudoLabels:
    """What a round says about nodes.

    Attributes:
        probs: Rows sum to 1, or are 0 where nothing arrived.
        weight: In [0, 1]; 0 = do not train on it.
        extra: Further per-node columns: cluster ids, path parents, path lengths ...
        numbers: What the round's record shall say, the same on every shard; not kept by the store.
    """

    probs: Float[Tensor, "n C"]
    weight: Float[Tensor, " n"]
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Hop:
    """One level of a neighbourhood: the distinct neighbours of the level above.

    Attributes:
        index: Row of each neighbour in this level, for every node of the level above
            (level 0 = the nodes asked for); -1 where there is none.
        node_ids: Ids of this level's nodes, distinct and ascending.
        features: Their rows in the feature bank, as put.
        density: Their densities.
    """

    index: Int64[Tensor, "b k"]
    node_ids: Int64[Tensor, " m"]
    features: Float[Tensor, "m D"]
    density: Float[Tensor, " m"]


@dataclass(frozen=True)
class Neighborhood:
    """The tree of neighbours below some nodes, level by level, each node stored once per level."""

    hops: tuple[Hop, ...]
