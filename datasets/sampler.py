"""Which nodes a phase visits, in which order. Pure: a function of (seed, epoch, step).

A plan speaks of global batches. Micro-batches cut a global batch into the units that a rank
computes, so neither the order nor the content of a batch depends on the number of ranks, and a
run resumes at any step by asking for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from .seeds import generator

Nodes = Literal["labeled", "unlabeled", "mixed", "all"]


def epoch_order(
    node_ids: Int64[Tensor, " n"],
    *,
    seed: int,
    epoch: int,
    groups: Int64[Tensor, " n"] | None = None,
    window: int | None = None,
    cycle: int = 0,
    stream: str = "nodes",
) -> Int64[Tensor, " n"]:
    """Shuffle nodes by (seed, epoch).

    Args:
        groups: Shard number of each node. If given, the order of the shards is shuffled, and nodes
            only within windows of several shards, so that a reader of remote shards stays local.
        window: Shards per window; 8 unless told.
        cycle: Number of the pass within the epoch.
        stream: Name of an independent series of orders.
    """
    draw = generator(seed, stream, epoch, cycle)
    order = draw.permutation(len(node_ids))
    if groups is not None:
        names, shard = np.unique(groups.numpy(), return_inverse=True)
        place = draw.permutation(len(names))[shard]
        # Stable: inside a window the permutation above stays.
        order = order[np.argsort(place[order] // (window or 8), kind="stable")]
    return node_ids[torch.from_numpy(order)]


class _Cycle:
    """An endless stream over some nodes, reshuffled each time it starts again."""

    def __init__(self, node_ids: Tensor, *, seed: int, epoch: int) -> None:
        self._node_ids = node_ids
        self._seed, self._epoch = seed, epoch
        self._last = (-1, node_ids)

    def take(self, start: int, stop: int) -> Tensor:
        """Positions start..stop-1 of the stream."""
        n = len(self._node_ids)
        parts = [
            self._order(cycle)[max(start - cycle * n, 0) : stop - cycle * n]
            for cycle in range(start // n, (stop - 1) // n + 1)
        ]
        return torch.cat(parts)

    def _order(self, cycle: int) -> Tensor:
        if self._last[0] != cycle:
            order = epoch_order(
                self._node_ids, seed=self._seed, epoch=self._epoch, cycle=cycle, stream="labeled"
            )
            self._last = (cycle, order)
        return self._last[1]


class _Passes:
    """Batches that visit every node exactly once per pass; pass after pass."""

    def __init__(
        self,
        node_ids: Tensor,
        groups: Tensor | None,
        bounds: list[int],
        *,
        seed: int,
        epoch: int,
    ) -> None:
        self._node_ids, self._bounds = node_ids, bounds
        self._groups = groups[node_ids] if groups is not None else None
        self._seed, self._epoch = seed, epoch
        self._last = (-1, node_ids)

    def take(self, step: int, index: int, micro_batches: int) -> Tensor:
        """Part `index` of a step's batch; the parts differ by at most one node."""
        cycle, place = divmod(step, len(self._bounds) - 1)
        start, stop = self._bounds[place : place + 2]
        size = stop - start
        first = start + index * size // micro_batches
        return self._order(cycle)[first : start + (index + 1) * size // micro_batches]

    def _order(self, cycle: int) -> Tensor:
        if self._last[0] != cycle:
            order = epoch_order(
                self._node_ids,
                seed=self._seed,
                epoch=self._epoch,
                groups=self._groups,
                cycle=cycle,
            )
            self._last = (cycle, order)
        return self._last[1]


def _bounds(num_nodes: int, size: int, micro_batches: int) -> list[int]:
    """Cut a pass into batches of `size`, each with at least one node per micro-batch.

    The last batch is smaller. If it had fewer nodes than micro-batches, it takes some from the one
    before; where that one has none to give (size = micro_batches), the two become one. No steps at
    all where there are too few nodes, or no room for them.
    """
    if size <= 0:
        return [0]
    num_steps = min(-(-num_nodes // size), num_nodes // micro_batches)
    bounds = [min(step * size, num_nodes) for step in range(num_steps)] + [num_nodes]
    if num_steps > 1 and bounds[-1] - bounds[-2] < micro_batches:
        bounds[-2] = num_nodes - micro_batches
    return bounds


@dataclass(frozen=True)
class Plan:
    """The global batches of one epoch of a phase; made by `make_plan`.

    Attributes:
        num_steps: Optimiser steps of the epoch.
        micro_batches: Parts of each global batch.
    """

    num_steps: int
    micro_batches: int
    labeled: _Cycle | None
    labeled_per_micro_batch: int
    others: _Passes | None

    def micro_batch(self, step: int, index: int) -> Int64[Tensor, " b"]:
        """Node ids of one micro-batch; labeled ones first where the phase is "mixed"."""
        if not (0 <= step < self.num_steps and 0 <= index < self.micro_batches):
            raise ValueError(
                f"step = {step}, index = {index}: the plan has {self.num_steps} steps of "
                f"{self.micro_batches} micro-batches"
            )
        parts = []
        if self.labeled is not None:
            size = self.labeled_per_micro_batch
            start = (step * self.micro_batches + index) * size
            parts.append(self.labeled.take(start, start + size))
        if self.others is not None:
            parts.append(self.others.take(step, index, self.micro_batches))
        return torch.cat(parts)

    def batch(self, step: int) -> Int64[Tensor, " b"]:
        """Node ids of a global batch, micro-batch after micro-batch."""
        return torch.cat([self.micro_batch(step, i) for i in range(self.micro_batches)])


def make_plan(
    nodes: Nodes,
    labels: Int64[Tensor, " n"],
    *,
    batch_size: int,
    labeled_per_batch: int,
    micro_batches: int,
    seed: int,
    epoch: int,
    num_steps: int | None = None,
    groups: Int64[Tensor, " n"] | None = None,
) -> Plan:
    """Plan one epoch of a phase over the nodes 0..n-1.

    "unlabeled" and "all" visit each of these nodes exactly once, in batches of `batch_size`.
    "mixed" does so with the unlabeled nodes and puts `labeled_per_batch` labeled ones before them,
    from a stream that starts again, reshuffled, whenever it is used up. "labeled" takes
    `batch_size` from such a stream, for as many steps as "mixed" has (one pass over the labeled
    nodes where "mixed" would have none: every node is labeled, or labeled_per_batch = batch_size).

    Args:
        labels: Given labels of the nodes, -1 = unlabeled.
        num_steps: Steps of the epoch: fewer than a pass cut it, more go on with another pass.
        groups: Shard number of each node; see `epoch_order`.

    Raises:
        ValueError: No node of a kind that the phase needs, sizes that are no multiples of
            micro_batches, or too few nodes to give every micro-batch one.
    """
    _check_sizes(nodes, batch_size, labeled_per_batch, micro_batches)
    uses_labeled, uses_others = nodes in ("labeled", "mixed"), nodes != "labeled"
    labeled = torch.nonzero(labels >= 0).flatten()
    others = torch.nonzero(labels < 0).flatten() if nodes != "all" else torch.arange(len(labels))
    if uses_labeled and not len(labeled):
        raise ValueError(f"phase over {nodes} nodes, but none of the {len(labels)} is labeled")
    if uses_others and len(others) < micro_batches:
        raise ValueError(
            f"phase over {nodes} nodes, but only {len(others)} of {len(labels)} nodes are "
            f"{'there' if nodes == 'all' else 'unlabeled'}, fewer than micro_batches = "
            f"{micro_batches}; lower train.micro_batches or give more nodes"
        )
    size = batch_size - labeled_per_batch if uses_labeled else batch_size
    bounds = _bounds(len(others), size, micro_batches)
    in_pass = len(bounds) - 1 or -(-len(labeled) // batch_size)
    labeled_size = batch_size if nodes == "labeled" else labeled_per_batch
    return Plan(
        num_steps=in_pass if num_steps is None else num_steps,
        micro_batches=micro_batches,
        labeled_per_micro_batch=labeled_size // micro_batches,
        labeled=_Cycle(labeled, seed=seed, epoch=epoch) if uses_labeled else None,
        others=_Passes(others, groups, bounds, seed=seed, epoch=epoch) if uses_others else None,
    )


def _check_sizes(nodes: Nodes, batch_size: int, labeled_per_batch: int, micro_batches: int) -> None:
    for name, size in (("batch_size", batch_size), ("labeled_per_batch", labeled_per_batch)):
        if size < 1 or size % micro_batches:
            raise ValueError(
                f"{name} = {size}: must be a multiple of micro_batches = {micro_batches}"
            )
    if nodes == "mixed" and labeled_per_batch >= batch_size:
        raise ValueError(
            f"labeled_per_batch = {labeled_per_batch} leaves no room for unlabeled nodes in "
            f"batch_size = {batch_size}; lower it"
        )
