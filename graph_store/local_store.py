"""The store of one process: one shard, no Ray."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from .checks import check_spec
from .partition import Partition
from .shard import Shard
from .snapshot import commit, new_version, read_manifest, read_rows, write_part
from .store import KnnReport, RefreshFn, StoreSpec
from .store_base import StoreBase


class LocalStore(StoreBase):
    """`GraphStore` in this process. The methods that write are for one thread at a time.

    Example:
        >>> spec = StoreSpec(num_nodes=3, dim=1, num_classes=2, k=1, metric="euclidean")
        >>> store = LocalStore(spec)
        >>> store.put(torch.arange(3), torch.tensor([[0.0], [1.0], [3.0]]))
        >>> store.update_knn().searched
        3
        >>> store.neighbors(torch.arange(3))[0].tolist()
        [[1], [0], [1]]
    """

    def __init__(self, spec: StoreSpec) -> None:
        check_spec(spec)
        super().__init__(spec, Partition.even(spec.num_nodes, 1))
        self._shard = Shard(spec, self.partition)

    @classmethod
    def restore(cls, uri: str, *, device: str | None = None) -> LocalStore:
        """The store that any store's `snapshot` wrote to `uri`; `device` None: the one it had."""
        manifest = read_manifest(uri)
        store = cls(replace(manifest.spec, device=device or manifest.spec.device))
        store._shard.load(read_rows(uri, manifest, 0, manifest.spec.num_nodes))
        return store

    def update_knn(self) -> KnnReport:
        return self._shard.update_knn()

    def refresh(self, fn: RefreshFn | None, *, round: int) -> Mapping[str, float]:
        """See `GraphStore.refresh`."""
        numbers = self._shard.solve(fn, round)
        began = time.perf_counter()
        self._shard.publish(round)
        return {**numbers, "seconds_publish": time.perf_counter() - began}

    def published(self) -> tuple[int, ...]:
        return self._shard.published()

    def snapshot(self, uri: str) -> None:
        """See `GraphStore.snapshot`; what is staged is written too."""
        self._shard.absorb()
        version = new_version(uri)
        part = write_part(uri, version, 0, self._shard.contents())
        commit(uri, version, self.spec, self.partition.bounds, [part])

    def close(self) -> None:
        """Nothing to do: the memory goes with the object."""

    def _write(self, method: str, node_ids: Tensor, *columns: Tensor | None) -> None:
        # Copies: what is put waits for the next update, and the caller may write to it meanwhile.
        kept = (None if column is None else column.clone() for column in columns)
        getattr(self._shard, method)(node_ids.clone(), *kept)

    def _rows(self, node_ids: Tensor, names: Sequence[str], round: int | None) -> dict[str, Tensor]:
        return self._shard.rows(node_ids, names, round)

    def _pseudo_rows(self, node_ids: Tensor, round: int | None) -> dict[str, Tensor]:
        return self._shard.pseudo_rows(node_ids, round)

    def _search(self, features: Tensor, k: int, round: int | None) -> tuple[Tensor, Tensor]:
        return self._shard.search(features, k, round)
