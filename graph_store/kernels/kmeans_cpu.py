"""Own rows of k-means on the CPU: who is nearest to which center, and what of that can change.

A row is in the cluster of the center with the smallest `fixed_point.squared_distances`, the lowest
of equally near ones. That is decided from products in the features' dtype where they leave no
doubt: rows and centers are shifted by a common middle and scaled, and the key
|x|^2/2 + |c|^2/2 - x c, half the squared distance, is off by at most

    e (|x| + |x - c|)^2 <= e (4 |x|^2/2 + 4 key),   e = 2 (D + 32) u

(`scaling`; 16 more for the roundings of the exact distances). Whoever is within that of the
smallest key is compared exactly.

Rows for which no center can have come nearer than their own are left out: bounds on the distance
from the own and from all other centers move with the centers (Hamerly, "Making k-means even
faster", SDM 2010). They decide what is computed, never the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from . import kmeans_compiled
from .compiled import Task, for_each_range, split_rows, task_threads
from .fixed_point import Grid, squared_distances
from .kmeans_compiled import GROUP
from .precision import exact_products
from .scaling import UNIT_ROUNDOFF

# Numbers in a block of rows or of products: as many as fit in a core's cache.
_BLOCK = 1 << 19
_ROUND_UP = 1 + 1e-9
# Of centers and of groups; see `kmeans_compiled.pick`.
_Drift = tuple[NDArray[np.float64], NDArray[np.float32]]
# Pairs of rows and centers that are worth a thread.
_LEAST_WORK = 200_000


@dataclass(frozen=True)
class Change:
    """What one assignment changes; adds up exactly over threads and shards.

    Attributes:
        sums: Of the rows on the grid, by cluster.
        tallies: How many more rows each cluster has; whether any came or went.
        totals: Rows that moved; the words of how much squared distance that saved.
    """

    sums: Int64[Tensor, "K D"]
    tallies: Int64[Tensor, "2 K"]
    totals: Int64[Tensor, "3"]

    def add(self, other: Change) -> None:
        self.sums.add_(other.sums)
        self.tallies.add_(other.tallies)
        self.totals.add_(other.totals)


def no_change(centers: Float64[Tensor, "K D"]) -> Change:
    """Of which nothing has been counted yet."""
    shapes = (centers.shape, (2, len(centers)), (3,))
    zeros = (torch.zeros(shape, dtype=torch.int64, device=centers.device) for shape in shapes)
    return Change(*zeros)


def relative_error(dim: int, dtype: torch.dtype) -> float:
    """`e` of the module's docstring; 1e-2 covers the roundings of what it is multiplied with."""
    return 2.02 * (dim + 32) * UNIT_ROUNDOFF[dtype]


class CpuRows:
    """Own rows, their clusters and their bounds.

    Attributes:
        labels: -1 before the first `assign`.
    """

    def __init__(self, features: Float[Tensor, "n D"], grid: Grid) -> None:
        num_rows, dim = features.shape
        self.labels = torch.full((num_rows,), -1)
        self._x, self._grid = features.contiguous(), grid
        self._error = relative_error(dim, features.dtype)
        self._middle = grid.middle(features)
        self._rows, self._half = torch.empty_like(self._x), self._x.new_empty(num_rows)
        for_each_range(self._put_in_frame, split_rows(num_rows, num_rows * dim))
        self._upper, self._bounds = np.empty(num_rows), np.empty((num_rows, 0), np.float32)
        self._places = np.empty(0, np.int64)
        self._last: Float64[Tensor, "K D"] | None = None
        self._run: Callable[[Iterable[Task]], None] | None = None
        self._num_threads = 1

    @contextmanager
    def working(self) -> Iterator[None]:
        """Where `assign` may be called: holds the threads, and makes products exact."""
        self._num_threads = torch.get_num_threads()
        with exact_products(self.labels.device), task_threads() as self._run:
            yield

    def assign(self, centers: Float64[Tensor, "K D"]) -> Change:
        """Find every row's center; centers are on the grid, and `Change` is of own rows alone."""
        assert self._run is not None
        num_rows, num_clusters = len(self.labels), len(centers)
        if self._last is None:
            self._places = group_centers(centers)
            self._bounds = np.full((num_rows, -(-num_clusters // GROUP)), np.inf, np.float32)
        step = self._step(centers)
        num_parts = max(1, min(self._num_threads, num_rows * max(centers.shape) // _LEAST_WORK))
        cuts = [num_rows * part // num_parts for part in range(num_parts + 1)]
        parts = [no_change(centers) for _ in range(num_parts)]
        tasks = [
            partial(self._assign, step, *span, part) for span, part in zip(pairwise(cuts), parts)
        ]
        self._run(tasks) if num_parts > 1 else tasks[0]()
        self._last = centers
        for part in parts[1:]:
            parts[0].add(part)
        return parts[0]

    def distances(self, centers: Float64[Tensor, "K D"]) -> Float64[Tensor, " n"]:
        """Squared distance of every row from its center, on the grid."""
        out = torch.empty(len(self.labels), dtype=torch.float64)

        def part(a: int, b: int) -> None:
            x, labels = self._x[a:b].numpy(), self.labels[a:b].numpy()
            kmeans_compiled.own_distances(
                x, self._grid.scale, centers.numpy(), labels, out[a:b].numpy()
            )

        for_each_range(part, split_rows(len(out), self._x.numel()))
        return out

    def row(self, at: int) -> Int64[Tensor, " D"]:
        """A row on the grid."""
        return self._grid.rows(self._x[at : at + 1])[0].to(torch.int64)

    def move(self, at: int, cluster: int) -> None:
        """Put a row into another cluster, whose center may be anywhere."""
        self.labels[at] = cluster
        self._bounds[at] = 0.0

    def _put_in_frame(self, a: int, b: int) -> None:
        kmeans_compiled.put_in_frame(
            self._x[a:b].numpy(),
            self._grid.scale,
            self._middle.numpy(),
            2.0**-self._grid.bits,
            self._rows[a:b].numpy(),
            self._half[a:b].numpy(),
        )

    def _step(self, centers: Float64[Tensor, "K D"]) -> _Step:
        unit, num_groups = 2.0**-self._grid.bits, self._bounds.shape[1]
        places = torch.from_numpy(self._places)
        framed = self._x.new_zeros(num_groups * GROUP, centers.shape[1])
        framed[places] = ((centers - self._middle) * unit).to(framed.dtype)
        half = torch.full((len(framed),), torch.inf, dtype=framed.dtype)
        half[places] = framed[places].to(torch.float64).square().sum(1).div(2).to(framed.dtype)
        order = np.full(len(framed), -1)
        order[self._places] = np.arange(len(centers))
        step = _Step(centers.numpy(), framed, half.numpy(), order)
        if self._last is None:
            return step
        drift = squared_distances(centers, self._last).sqrt().numpy() * (unit * _ROUND_UP)
        of_groups = _drift_of_groups(drift, self._places, num_groups)
        return replace(step, drift=(drift, of_groups))

    def _assign(self, step: _Step, start: int, stop: int, change: Change) -> None:
        """`assign` of some rows, by one thread."""
        num_places, dim = step.framed.shape
        size = max(1, min(_BLOCK // max(num_places, dim), stop - start))
        room = _Room(self._x.new_empty(size, num_places), self._x.new_empty(size, dim))
        at = start
        while at < stop:
            if step.drift is None:
                end = min(at + size, stop)
                torch.mm(self._rows[at:end], step.framed.T, out=room.keys[: end - at])
                kmeans_compiled.key_all(room.keys[: end - at].numpy(), step.half)
                self._settle(step, np.arange(at, end), room, change)
                at = end
            else:
                at = self._revisit(step, step.drift, at, stop, room, change)

    def _revisit(
        self, step: _Step, drift: _Drift, start: int, stop: int, room: _Room, change: Change
    ) -> int:
        """Rows of which bounds are known, until there is no room for more."""
        size = len(room.rows)
        sparse, dense = np.empty(size, np.int64), np.empty(size, np.int64)
        num_sparse, num_dense, reached = kmeans_compiled.pick(
            start,
            stop,
            *drift,
            self._rows.numpy(),
            self._half.numpy(),
            step.framed.numpy(),
            step.half,
            self._places,
            self._error,
            self.labels.numpy(),
            self._upper,
            self._bounds,
            room.keys.numpy(),
            sparse,
            dense,
        )
        if num_sparse:
            self._settle(step, sparse[:num_sparse], room, change)
        if num_dense:
            rows, keys = room.rows[:num_dense], room.keys[:num_dense]
            torch.index_select(self._rows, 0, torch.from_numpy(dense[:num_dense]), out=rows)
            torch.mm(rows, step.framed.T, out=keys)
            kmeans_compiled.key_all(keys.numpy(), step.half)
            self._settle(step, dense[:num_dense], room, change)
        return int(reached)

    def _settle(self, step: _Step, picked: NDArray[np.int64], room: _Room, change: Change) -> None:
        """Rows whose keys were made."""
        keys = room.keys[: len(picked)].numpy()
        found, limits = np.empty(len(picked), np.int64), np.empty(len(picked))
        kmeans_compiled.settle(
            keys,
            picked,
            self._half.numpy(),
            step.order,
            self._error,
            self._upper,
            self._bounds,
            np.empty(self._bounds.shape[1], keys.dtype),
            found,
            limits,
        )
        kmeans_compiled.move(
            keys,
            picked,
            found,
            limits,
            step.order,
            self._x.numpy(),
            self._grid.scale,
            self._grid.word_factors,
            step.centers,
            self.labels.numpy(),
            change.sums.numpy(),
            change.tallies.numpy(),
            change.totals.numpy(),
        )


@dataclass(frozen=True)
class _Step:
    """Centers of one assignment.

    Attributes:
        centers: On the grid.
        framed: As products see them, in groups; `half` is half their squared lengths.
        order: The center at each place of the groups; -1: none.
        drift: How far they moved since the last one; None: there was none.
    """

    centers: NDArray[np.float64]
    framed: Float[Tensor, "places D"]
    half: kmeans_compiled.Rows
    order: NDArray[np.int64]
    drift: _Drift | None = None


@dataclass(frozen=True)
class _Room:
    """A thread's room for a block of keys and of rows."""

    keys: Float[Tensor, "block places"]
    rows: Float[Tensor, "block D"]


def group_centers(centers: Float64[Tensor, "K D"]) -> NDArray[np.int64]:
    """Places of centers in groups of `GROUP` near ones, by halving along their widest extent."""
    places, num_groups = np.empty(len(centers), np.int64), -(-len(centers) // GROUP)
    pending, group = [np.arange(len(centers))], 0
    while pending:
        members = pending.pop()
        if len(members) <= GROUP:
            places[members] = group + num_groups * np.arange(len(members))
            group += 1
            continue
        own = centers[torch.from_numpy(members)]
        from_middle = own - own.mean(0)
        axis = from_middle[from_middle.square().sum(1).argmax()]
        ranked = members[torch.argsort(from_middle @ axis, stable=True).numpy()]
        half = -(-len(members) // (2 * GROUP)) * GROUP
        pending += [ranked[half:], ranked[:half]]
    return places


def _drift_of_groups(
    drift: NDArray[np.float64], places: NDArray[np.int64], num_groups: int
) -> NDArray[np.float32]:
    """See `kmeans_compiled.pick`."""
    flat = np.zeros((2, num_groups * GROUP))
    flat[:, places] = drift, np.arange(len(drift))
    table, ids = flat.reshape(2, GROUP, num_groups)
    farthest, groups = table.argmax(0), np.arange(num_groups)
    largest, which = table[farthest, groups], ids[farthest, groups]
    table[farthest, groups] = 0.0
    up = 1 + 2.0**-22  # rounded up to float32
    return np.stack([largest * up, table.max(0) * up, which]).astype(np.float32)
