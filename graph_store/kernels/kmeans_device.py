"""Own rows of k-means on any device, in torch operations: what `kmeans_cpu` does, without bounds.

On a GPU the products of a block with all centers take less time than finding out which of them
could be left away.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from .fixed_point import Grid, squared_distances
from .kmeans_cpu import Change, no_change, relative_error
from .precision import exact_products

# Numbers in a block of products, or of float64 rows.
_BLOCK = 1 << 24


class DeviceRows:
    """Own rows and their clusters; see `kmeans_cpu.CpuRows`."""

    def __init__(self, features: Float[Tensor, "n D"], grid: Grid) -> None:
        self.labels = torch.full((len(features),), -1, device=features.device)
        self._x, self._grid = features, grid
        self._error = relative_error(grid.dim, features.dtype)
        self._middle = grid.middle(features)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Where `assign` may be called: makes products exact."""
        with exact_products(self.labels.device):
            yield

    def assign(self, centers: Float64[Tensor, "K D"]) -> Change:
        """Find every row's center; centers are on the grid, and `Change` is of own rows alone."""
        change = no_change(centers)
        framed = self._in_frame(centers)
        half = _half(framed)
        for start, stop in self._blocks(max(centers.shape)):
            rows = self._grid.rows(self._x[start:stop])
            found = self._nearest(rows, framed, half, centers)
            self._move(rows, self.labels[start:stop], found, centers, change)
        return change

    def distances(self, centers: Float64[Tensor, "K D"]) -> Float64[Tensor, " n"]:
        """Squared distance of every row from its center, on the grid."""
        out = torch.empty(len(self.labels), dtype=torch.float64, device=centers.device)
        for start, stop in self._blocks(self._grid.dim):
            own = centers[self.labels[start:stop]]
            out[start:stop] = squared_distances(self._grid.rows(self._x[start:stop]), own)
        return out

    def row(self, at: int) -> Int64[Tensor, " D"]:
        """A row on the grid."""
        return self._grid.rows(self._x[at : at + 1])[0].to(torch.int64)

    def move(self, at: int, cluster: int) -> None:
        """Put a row into another cluster, whose center may be anywhere."""
        self.labels[at] = cluster

    def _in_frame(self, points: Float64[Tensor, "m D"]) -> Float[Tensor, "m D"]:
        return ((points - self._middle) * 2.0**-self._grid.bits).to(self._x.dtype)

    def _blocks(self, width: int) -> Iterator[tuple[int, int]]:
        size, num_rows = max(1, _BLOCK // width), len(self.labels)
        return ((start, min(start + size, num_rows)) for start in range(0, num_rows, size))

    def _nearest(
        self,
        rows: Float64[Tensor, "n D"],
        framed: Float[Tensor, "K D"],
        half_centers: Float[Tensor, " K"],
        centers: Float64[Tensor, "K D"],
    ) -> Int64[Tensor, " n"]:
        """Each row's nearest center; exact where products leave a doubt."""
        own = self._in_frame(rows)
        half, e = _half(own).to(torch.float64), self._error
        keys = half_centers - own @ framed.T
        low, best = keys.min(1)
        near = (low.to(torch.float64) + half).clamp(min=0)
        limit = (near * (1 + 4 * e) + 8 * e * half) / (1 - 4 * e) - half
        is_near = keys <= limit[:, None]
        doubtful = (is_near.sum(1) > 1).nonzero()[:, 0]
        at, cluster = is_near[doubtful].nonzero().unbind(1)
        exact = torch.empty(len(at), dtype=torch.float64, device=rows.device)
        size = max(1, _BLOCK // self._grid.dim)
        for part in (slice(start, start + size) for start in range(0, len(at), size)):
            exact[part] = squared_distances(rows[doubtful[at[part]]], centers[cluster[part]])
        least = exact.new_full((len(doubtful),), torch.inf).scatter_reduce(0, at, exact, "amin")
        first = torch.full_like(doubtful, len(centers))
        is_least = exact == least[at]
        best[doubtful] = first.scatter_reduce(0, at[is_least], cluster[is_least], "amin")
        return best

    def _move(
        self,
        rows: Float64[Tensor, "n D"],
        labels: Int64[Tensor, " n"],
        found: Int64[Tensor, " n"],
        centers: Float64[Tensor, "K D"],
        change: Change,
    ) -> None:
        """Count what moves, and write it into `labels`."""
        moved = torch.ne(found, labels).nonzero()[:, 0]
        rows, new, old = rows[moved], found[moved], labels[moved]
        _count(rows, new, 1, change)
        had = (old >= 0).nonzero()[:, 0]
        rows, new, old = rows[had], new[had], old[had]
        _count(rows, old, -1, change)
        saved = squared_distances(rows, centers[old]) - squared_distances(rows, centers[new])
        change.totals[0] += len(moved)
        change.totals[1:] += self._grid.words(saved)
        labels[moved] = found[moved]


def _half(points: Float[Tensor, "m D"]) -> Float[Tensor, " m"]:
    return points.to(torch.float64).square().sum(1).div(2).to(points.dtype)


def _count(
    rows: Float64[Tensor, "n D"], clusters: Int64[Tensor, " n"], sign: int, change: Change
) -> None:
    change.sums.index_add_(0, clusters, rows.to(torch.int64) * sign)
    change.tallies[0].index_add_(0, clusters, torch.full_like(clusters, sign))
    change.tallies[1].index_fill_(0, clusters, 1)
