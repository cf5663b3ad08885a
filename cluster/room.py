"""How much room a Ray cluster has for a run, now."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..trainers.config import RunSpec
from ..trainers.placement import Placement
from .nodes import free_nodes, leaving_nodes, living_nodes, most_resources
from .placement import Node, plan_placement
from .resources import ResourceError, needs
from .supervise import Room


class ClusterRoom:
    """Looks at the cluster for one run.

    Args:
        holds_shards: Whether the run's shards are there already, between attempts.
        before_plan: Called before a run that waits plans anew; what it raises ends the waiting.
    """

    def __init__(
        self,
        spec: RunSpec,
        *,
        holds_shards: Callable[[], bool],
        before_plan: Callable[[], None],
    ) -> None:
        self._spec = spec
        self._holds_shards, self._before_plan = holds_shards, before_plan
        self._num_workers = spec.train.world_sizes[-1]

    def find(self, sizes: Sequence[int], held: int) -> Room | str:
        """The largest of `sizes` that fits; a sentence with numbers where none does.

        Args:
            held: Workers that the run has and keeps; their room need not be free.
        """
        refusal = ""
        for size in sizes:
            try:
                self._plan(size - held, with_shards=not held and not self._holds_shards())
            except ResourceError as error:
                refusal = str(error)
            else:
                self._num_workers = held or size
                return Room(size)
        if not held and most_resources() is not None:
            # The cluster scales by itself: asking is what makes machines come.
            self._num_workers = sizes[-1]
            return Room(sizes[-1])
        return refusal

    def plan(self) -> Placement:
        """Where shards and workers go: on what is free now, else on what there is, else anywhere.

        Raises:
            ResourceError: The cluster has become too small, and does not scale by itself.
        """
        self._before_plan()
        for nodes in (free_nodes(), living_nodes()):
            try:
                return self._plan(self._num_workers, with_shards=True, nodes=nodes)
            except ResourceError as error:
                refusal = error
        if most_resources() is not None:
            return Placement(strategy="PACK")  # nodes that are not there yet cannot be named
        raise refusal

    def leaving(self) -> frozenset[str]:
        """Ids of the nodes that Ray has been told to drain: spot machines that are taken back."""
        return leaving_nodes()

    def _plan(
        self, num_workers: int, *, with_shards: bool, nodes: Sequence[Node] | None = None
    ) -> Placement:
        parts = needs(self._spec)
        trainers = replace(parts[0], count=num_workers)
        shards = parts[1] if with_shards and len(parts) > 1 else None
        return plan_placement(
            free_nodes() if nodes is None else nodes,
            trainers,
            shards,
            strategy=self._spec.resources.placement,
        )
