"""`labelmesh.GraphStore`: make a store on Ray, or restore one. Ray is imported on first use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from .store import Metric, StoreSpec

if TYPE_CHECKING:
    from .ray_store import RayStore


class GraphStore:
    """Where stores come from; what they can do is told in `store.GraphStore`."""

    @staticmethod
    def create(
        num_nodes: int,
        dim: int,
        num_classes: int,
        k: int,
        metric: Metric = "cosine",
        num_shards: int = 1,
        device: str = "auto",
        dtype: Literal["float32", "float16"] = "float32",
        backend: Literal["auto", "torch", "faiss", "ivf"] = "auto",
        *,
        update: Literal["exact", "refine"] = "exact",
        tolerance: float = 0.0,
        slack: int | None = None,
        recall_target: float = 0.99,
        name: str = "store",
        log_uri: str | None = None,
        **resources: Any,
    ) -> RayStore:
        """An empty store on shards of its own.

        Args:
            device: "auto" is the GPU where shards ask for one (`gpus_per_shard` > 0), else the CPU.
            update, tolerance, slack, recall_target: How the graph is kept; see `store.StoreSpec`.
            log_uri: Where shards log what they are told; see `RayStore.create`.
            resources: See `shard_options.ShardOptions`.

        Raises:
            ValueError: A shape that no store can have, or more than the cluster has.
        """
        from .ray_store import RayStore
        from .shard_options import ShardOptions

        options = ShardOptions(**resources)
        spec = StoreSpec(
            num_nodes=num_nodes,
            dim=dim,
            num_classes=num_classes,
            k=k,
            metric=metric,
            dtype=dtype,
            backend=backend,
            device=_device(device, options.gpus_per_shard),
            update=update,
            tolerance=tolerance,
            slack=slack,
            recall_target=recall_target,
        )
        return RayStore.create(
            spec, num_shards=num_shards, name=name, log_uri=log_uri, options=options
        )

    @staticmethod
    def restore(
        uri: str,
        num_shards: int | None = None,
        device: str = "auto",
        *,
        name: str = "store",
        log_uri: str | None = None,
        **resources: Any,
    ) -> RayStore:
        """The store that a `snapshot` wrote, on any number of shards (None: as many as it had)."""
        from .ray_store import RayStore
        from .shard_options import ShardOptions

        options = ShardOptions(**resources)
        return RayStore.restore(
            uri,
            num_shards=num_shards,
            device=_device(device, options.gpus_per_shard),
            name=name,
            log_uri=log_uri,
            options=options,
        )


def _device(device: str, gpus_per_shard: float) -> str:
    if device == "auto":
        return "cuda" if gpus_per_shard > 0 else "cpu"
    if device.startswith("cuda") and gpus_per_shard <= 0:
        raise ValueError(
            f"device = {device!r}, but gpus_per_shard = {gpus_per_shard:g}: shards would "
            f"take a GPU that Ray may have lent to others; set gpus_per_shard"
        )
    return device
