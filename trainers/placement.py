"""Where the processes of a run go on a cluster: plain data, planned above, taken by `reserve`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

NODE_ID_LABEL = "ray.io/node-id"
_MOST_EXCLUDED = 64


@dataclass(frozen=True)
class Placement:
    """A plan: which node holds which trainers and which shards.

    Attributes:
        trainers: Node id of every trainer; () where nobody planned and Ray chooses.
        shards: Node id of every shard; each is also in `trainers` wherever that is possible, so
            that a part of what a shard is fed does not cross the network.
        others: The cluster's other nodes, which the run keeps off.
        strategy: How Ray spreads the processes over the nodes that are left.
    """

    trainers: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    strategy: Literal["SPREAD", "PACK"] = "SPREAD"

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that the run uses, sorted."""
        return tuple(sorted({*self.trainers, *self.shards}))

    @property
    def selector(self) -> dict[str, str]:
        """The plan's nodes as Ray's label selector; {} where all nodes may be used.

        The others are excluded rather than the plan's nodes named: a node that joins later, in the
        place of a lost one, may then be used, and what ran on the lost one may go to the plan's
        other nodes. Where the cluster has many others, the plan's nodes are named after all.
        """
        if not self.others:
            return {}
        if len(self.others) <= _MOST_EXCLUDED:
            return {NODE_ID_LABEL: f"!in({','.join(self.others)})"}
        return {NODE_ID_LABEL: f"in({','.join(self.nodes)})"}


# Plans on what the cluster has free at the moment of the call.
MakePlacement = Callable[[], Placement]
