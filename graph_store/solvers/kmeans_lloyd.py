"""Lloyd's iteration on the integers that rows stand for; see `kmeans`.

Sums of clusters are kept and changed by the rows that move. The objective is known from what each
iteration saves: rows that move save |x - c_old|^2 - |x - c_new|^2, and a center that moves to the
mean of its n rows saves n |c - mean|^2. Both are never negative, and neither needs a pass over all
rows; one at the end gives the last value, and the others are it plus what was saved after them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from ..kernels.fixed_point import means, squared_distances
from ..kernels.kmeans_cpu import Change, CpuRows
from ..kernels.kmeans_device import DeviceRows
from .kmeans_seeding import OwnRows
from .reductions import Reduction

_NOBODY = 1 << 62


@dataclass(frozen=True)
class Iteration:
    """What an iteration did.

    Attributes:
        number: From 1.
        num_moved: Rows of all shards that changed their cluster; all of them in the first.
        saved: By how much it lowered the objective; nan in the first.
    """

    number: int
    num_moved: int
    saved: float


@dataclass(frozen=True)
class Clusters:
    """Centers are on the grid; `objectives` in the units of the features."""

    labels: Int64[Tensor, " n"]
    centers: Float64[Tensor, "K D"]
    objectives: list[float]
    converged: bool


def lloyd(
    own: OwnRows,
    centers: Float64[Tensor, "K D"],
    max_iter: int,
    on_iteration: Callable[[Iteration], None] | None = None,
) -> Clusters:
    """Assign rows and move centers in turn until nothing changes; see `kmeans.kmeans`."""
    state = _State(own, centers)
    saved: list[float] = []
    converged = False
    with state.rows.working():
        for number in range(1, max_iter + 1):
            num_moved, gain = state.assign()
            converged = num_moved == 0
            if not converged:
                gain += state.fill_empty()
                gain += state.move_centers()
            saved.append(own.grid.squared(gain))
            if on_iteration is not None:
                on_iteration(Iteration(number, num_moved, saved[-1] if number > 1 else math.nan))
            if converged:
                break
        else:
            num_moved, gain = state.assign()
            saved[-1] += own.grid.squared(gain)
            converged = num_moved == 0
    from_last = accumulate([state.objective(), *reversed(saved[1:])])
    return Clusters(state.rows.labels, state.centers, list(from_last)[::-1], converged)


class _State:
    """Own rows, and what all shards know alike: centers, exact sums and sizes of clusters."""

    def __init__(self, own: OwnRows, centers: Float64[Tensor, "K D"]) -> None:
        make = CpuRows if centers.device.type == "cpu" else DeviceRows
        self._own = own
        self.rows: CpuRows | DeviceRows = make(own.features, own.grid)
        self.centers = centers
        self._sums = torch.zeros(centers.shape, dtype=torch.int64, device=centers.device)
        self._sizes = self._sums.new_zeros(len(centers))
        self._is_touched = torch.zeros_like(self._sizes, dtype=torch.bool)

    def assign(self) -> tuple[int, float]:
        """Put rows where they are nearest; how many moved, and what it saved."""
        change = _of_all_shards(self.rows.assign(self.centers), self._own.all_sum)
        self._sums += change.sums
        self._sizes += change.tallies[0]
        self._is_touched = change.tallies[1] > 0
        num_moved, high, low = change.totals.tolist()
        return num_moved, self._own.grid.value(high, low)

    def move_centers(self) -> float:
        """Put centers into the means of their rows; what it saved."""
        at = (self._is_touched & (self._sizes > 0)).nonzero()[:, 0]
        sizes = self._sizes[at]
        to = means(self._sums[at], sizes)
        saved = squared_distances(self.centers[at], to) * sizes.to(torch.float64)
        self.centers = self.centers.index_copy(0, at, to)
        return math.fsum(saved.tolist())

    def fill_empty(self) -> float:
        """Give clusters without rows the rows farthest from their centers; what it saved."""
        empty = (self._sizes == 0).nonzero()[:, 0].tolist()
        saved: list[float] = []
        if empty:
            self.centers = self.centers.clone()
            distances = self.rows.distances(self.centers)
        for cluster in empty:
            found = self._farthest(distances)
            if found is None:
                break
            distance, own_at, row, old = found
            for c, sign in ((old, -1), (cluster, 1)):
                self._sums[c] += sign * row
                self._sizes[c] += sign
                self._is_touched[c] = True
            self.centers[cluster] = row.to(torch.float64)
            saved.append(distance)
            if own_at is not None:
                self.rows.move(own_at, cluster)
                distances[own_at] = 0.0
        return math.fsum(saved)

    def objective(self) -> float:
        """Sum of squared distances, in the units of the features."""
        grid = self._own.grid
        words = self._own.all_sum(grid.words(self.rows.distances(self.centers)))
        return grid.squared(grid.value(*words.tolist()))

    def _farthest(
        self, distances: Float64[Tensor, " n"]
    ) -> tuple[float, int | None, Int64[Tensor, " D"], int] | None:
        """The row of all shards that is farthest from its center and not alone with it.

        Returns:
            Its squared distance, its position if it is an own row, itself and its cluster; None:
            all rows are where their centers are.
        """
        own, labels = self._own, self.rows.labels
        far = torch.where(self._sizes[labels] > 1, distances, 0.0)
        largest = own.all_max(torch.cat([far, far.new_zeros(1)]).amax(0, keepdim=True))
        if float(largest) == 0.0:
            return None
        at_most = torch.where(torch.eq(far, largest), own.node_ids, _NOBODY)
        lowest = torch.cat([at_most, at_most.new_full((1,), _NOBODY)]).amin(0, keepdim=True)
        is_it = torch.eq(own.node_ids, -own.all_max(-lowest)).nonzero()[:, 0].tolist()
        sent = torch.zeros(own.grid.dim + 1, dtype=torch.int64, device=labels.device)
        if is_it:
            sent[:-1], sent[-1] = self.rows.row(is_it[0]), labels[is_it[0]]
        sent = own.all_sum(sent)
        return float(largest), is_it[0] if is_it else None, sent[:-1], int(sent[-1])


def _of_all_shards(change: Change, all_sum: Reduction) -> Change:
    """One collective for all of it."""
    parts = (change.sums, change.tallies, change.totals)
    summed = all_sum(torch.cat([part.reshape(-1) for part in parts]))
    split = torch.split(summed, [part.numel() for part in parts])
    return Change(*(flat.reshape(part.shape) for flat, part in zip(split, parts)))
