"""What `LocalStore` and `RayStore` have in common: checks, array kinds and neighbourhoods.

numpy arrays are taken as well as tensors; ids, similarities and columns come back as what was
given. A subclass moves checked tensors to and from its shards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from .checks import check_ids, check_labels, check_query, check_rows, check_spec
from .kernels.rows import similarity_from_distance
from .neighborhood import build_neighborhood
from .partition import Partition
from .solvers.arrays import as_tensor
from .store import KnnReport, RefreshFn, StoreSpec
from .view import Neighborhood, PseudoLabels

Array = Tensor | NDArray[Any]
Kind = TypeVar("Kind", Tensor, NDArray[Any])
# Not typing.Self: the run-time type checks of the tests cannot resolve it.
StoreType = TypeVar("StoreType", bound="StoreBase")


class StoreBase(ABC):
    """A `GraphStore` over shards that a subclass reaches."""

    def __init__(self, spec: StoreSpec, partition: Partition) -> None:
        check_spec(spec)
        self.spec = spec
        self.partition = partition

    @property
    def num_shards(self) -> int:
        return self.partition.num_shards

    def put(self, node_ids: Array, features: Array, probs: Array | None = None) -> None:
        """See `GraphStore.put`; nodes whose `probs` are not given keep those that they have."""
        ids, rows = _tensor(node_ids), _tensor(features)
        given = None if probs is None else _tensor(probs)
        check_rows(self.spec, ids, rows, given)
        self._write("put", ids, rows.to(_feature_dtype(self.spec)), given)

    def remove(self, node_ids: Array) -> None:
        """See `GraphStore.remove`."""
        ids = _tensor(node_ids)
        check_ids(self.spec, ids, distinct=True)
        self._write("remove", ids)

    def put_labels(self, node_ids: Array, labels: Array) -> None:
        """See `GraphStore.put_labels`."""
        ids, given = _tensor(node_ids), _tensor(labels)
        check_labels(self.spec, ids, given)
        self._write("put_labels", ids, given)

    @abstractmethod
    def update_knn(self) -> KnnReport: ...

    @abstractmethod
    def refresh(self, fn: RefreshFn | None, *, round: int) -> Mapping[str, float]: ...

    @abstractmethod
    def published(self) -> tuple[int, ...]: ...

    def pseudo_labels(self, node_ids: Array, *, round: int | None = None) -> PseudoLabels:
        """What the round says about some nodes; zeros where it was published without any."""
        ids = self._ids(node_ids)
        rows = self._pseudo_rows(ids, self._pin(round))
        extra = {name[6:]: rows[name] for name in rows if name.startswith("extra.")}
        nothing = torch.zeros(len(ids), self.spec.num_classes + 1)
        probs = rows.get("pseudo.probs", nothing[:, 1:])
        return PseudoLabels(probs, rows.get("pseudo.weight", nothing[:, 0]), extra)

    def neighbors(self, node_ids: Kind, *, round: int | None = None) -> tuple[Kind, Kind]:
        """See `GraphStore.neighbors`."""
        names = ("neighbor_ids", "similarity")
        rows = self._rows(self._ids(node_ids), names, self._pin(round))
        return _like(node_ids, rows["neighbor_ids"]), _like(node_ids, rows["similarity"])

    def neighborhood(self, node_ids: Array, *, hops: int, round: int | None = None) -> Neighborhood:
        """See `GraphStore.neighborhood`. One request per shard and level, and one before."""
        ids, pinned = self._ids(node_ids), self._pin(round)
        first = self._rows(ids, ("neighbor_ids",), pinned)["neighbor_ids"]
        return self._descend(first, hops, pinned)

    def query(self, features: Kind, *, k: int, round: int | None = None) -> tuple[Kind, Kind]:
        """See `GraphStore.query`."""
        ids, distances = self._nearest(_tensor(features), k, self._pin(round))
        similarity = similarity_from_distance(distances).float()
        return _like(features, ids), _like(features, similarity)

    def query_neighborhood(
        self, features: Array, *, k: int, hops: int, round: int | None = None
    ) -> Neighborhood:
        """See `GraphStore.query_neighborhood`."""
        pinned = self._pin(round)
        return self._descend(self._nearest(_tensor(features), k, pinned)[0], hops, pinned)

    def read(self, column: str, node_ids: Kind, *, round: int | None = None) -> Kind:
        """See `GraphStore.read`."""
        ids = self._ids(node_ids)
        pinned = None if column == "labels" else self._pin(round)
        return _like(node_ids, _wide(self._rows(ids, (column,), pinned)[column]))

    @abstractmethod
    def snapshot(self, uri: str) -> None: ...

    @abstractmethod
    def close(self) -> None: ...

    def __enter__(self: StoreType) -> StoreType:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # What a subclass does; rounds are pinned, None = staged.

    @abstractmethod
    def _write(self, method: str, node_ids: Tensor, *columns: Tensor | None) -> None:
        """Call a method of the owners with their rows of the columns."""

    @abstractmethod
    def _rows(self, node_ids: Tensor, names: Sequence[str], round: int | None) -> dict[str, Tensor]:
        """`Shard.rows` over all shards, in the order of `node_ids`."""

    @abstractmethod
    def _pseudo_rows(self, node_ids: Tensor, round: int | None) -> dict[str, Tensor]:
        """`Shard.pseudo_rows` over all shards, in the order of `node_ids`."""

    @abstractmethod
    def _search(self, features: Tensor, k: int, round: int | None) -> tuple[Tensor, Tensor]:
        """`Shard.search` over all shards, merged."""

    # Helpers

    def _pin(self, round: int | None) -> int | None:
        """One round for all requests of a read."""
        return next(reversed(self.published()), None) if round is None else round

    def _ids(self, node_ids: Array) -> Tensor:
        ids = _tensor(node_ids)
        check_ids(self.spec, ids)
        return ids

    def _nearest(self, features: Tensor, k: int, round: int | None) -> tuple[Tensor, Tensor]:
        check_query(self.spec, features, k)
        # The bank was rounded to the store's dtype when it was put; the query is not.
        return self._search(features.float(), k, round)

    def _descend(self, neighbor_ids: Tensor, hops: int, round: int | None) -> Neighborhood:
        if hops < 1:
            raise ValueError(f"hops = {hops} must be at least 1")

        def fetch(ids: Tensor, names: tuple[str, ...]) -> dict[str, Tensor]:
            rows = self._rows(ids, names, round)
            return {name: _wide(column) for name, column in rows.items()}

        return build_neighborhood(neighbor_ids, hops, self.spec.num_nodes, fetch)


def _feature_dtype(spec: StoreSpec) -> torch.dtype:
    return torch.float16 if spec.dtype == "float16" else torch.float32


def _wide(column: Tensor) -> Tensor:
    return column.float() if column.dtype == torch.float16 else column


def _tensor(values: Array) -> Tensor:
    """A tensor on the CPU, sharing memory where it can."""
    return as_tensor(values).detach().cpu()


def _like(given: Kind, result: Tensor) -> Kind:
    """The result as what was given: a tensor or an array."""
    return result if isinstance(given, Tensor) else result.numpy()
