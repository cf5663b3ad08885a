"""Conjugate gradients on the graph of a batch: (D - W) x = b on some rows, all columns at once.

The matrix is scaled to a unit diagonal, which is Jacobi preconditioning. Each column has a Krylov
space of its own and stops by itself, so its bits depend on no other column, nor on the number of
threads. The state is kept between calls: to go on with a smaller tolerance costs no restart.

Shape letters: n rows of the batch, C columns; c is 1 or C: one matrix for all columns, or one each.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from .batch_graph import BatchGraph, segment_sums
from .compiled import compiled
from .rows import tree_sum

# Iterations between two looks at the residuals where these lie on a device.
_STEPS = 16
# Columns are padded to whole vectors, and one more thread takes at least as many.
_LANES = 16

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class System:
    """The scaled matrix I - S on the free rows; S_ij = w_ij scale_i scale_j.

    Attributes:
        offsets, cols, vals: S by rows. On the CPU entries of rows that are not free are left out,
            elsewhere they are zero.
        scale: diagonal^(-1/2), 0 for rows that are not free.
    """

    offsets: Int64[Tensor, " n1"]
    cols: Int64[Tensor, " m"]
    vals: Float64[Tensor, "m c"]
    scale: Float64[Tensor, "n c"]


def make_system(
    graph: BatchGraph,
    weights: Float64[Tensor, "e c"],
    diagonal: Float64[Tensor, "n c"],
    free: Bool[Tensor, " n"],
) -> System:
    """The matrix with this diagonal and minus the weights beside it, on the free rows.

    Args:
        diagonal: At least the sum of the row's weights, and positive on free rows.
    """
    scale = torch.where(free[:, None], diagonal, torch.inf).rsqrt()
    if weights.device.type != "cpu":
        edge = weights[graph.edges] * scale[graph.rows] * scale[graph.cols]
        return System(graph.offsets, graph.cols, edge, scale)
    offsets = np.zeros(graph.num_rows + 1, np.int64)
    cols = np.empty(graph.cols.shape[0], np.int64)
    vals = np.empty((graph.cols.shape[0], weights.shape[1]))
    size = _scale_entries(
        graph.offsets.numpy(),
        graph.cols.numpy(),
        graph.edges.numpy(),
        weights.contiguous().numpy(),
        scale.contiguous().numpy(),
        free.numpy(),
        offsets,
        cols,
        vals,
    )
    entries = torch.from_numpy(cols[:size]), torch.from_numpy(vals[:size])
    return System(torch.from_numpy(offsets), *entries, scale)


@dataclass
class Solve:
    """A system being solved for some right-hand sides.

    Attributes:
        x, r, p: Scaled solution, residual and direction.
        rr: Squared norms of the residuals; `start` what they were at first.
        threads: To be used on the CPU.
        steps: Iterations so far, of the column that took most.
    """

    system: System
    x: Float64[Tensor, "n C"]
    r: Float64[Tensor, "n C"]
    p: Float64[Tensor, "n C"]
    rr: Float64[Tensor, " C"]
    start: Float64[Tensor, " C"]
    threads: int
    steps: int = 0

    @classmethod
    def begin(
        cls, system: System, rhs: Float64[Tensor, "n C"], threads: int | None = None
    ) -> Solve:
        """Start at zero; `rhs` counts on the free rows alone. `threads` is torch's by default."""
        r = rhs * system.scale
        rr = column_sums(r.square())
        threads = threads or torch.get_num_threads()
        return cls(system, torch.zeros_like(r), r, r.clone(), rr, rr.clone(), threads)

    @property
    def solution(self) -> Float64[Tensor, "n C"]:
        """Zero on rows that are not free."""
        return self.x * self.system.scale

    def run(self, tol: float, max_steps: int) -> bool:
        """Iterate until every |r| is at most `tol` times what it was at first; whether it is."""
        limits = self.start * tol**2
        if self.x.device.type == "cpu":
            self._run_compiled(limits, max_steps)
        else:
            self._run_on_device(limits, max_steps)
        return bool((self.rr <= limits).all())

    def _run_compiled(self, limits: Tensor, max_steps: int) -> None:
        width = self.x.shape[1]
        parts = max(1, min(self.threads, width // _LANES))
        bounds = [width * part // parts for part in range(parts + 1)]
        groups = [slice(*pair) for pair in pairwise(bounds)]
        if parts == 1:
            steps = [self._run_columns(limits, max_steps, groups[0])]
        else:
            with ThreadPoolExecutor(parts) as pool:
                run = partial(self._run_columns, limits, max_steps)
                steps = list(pool.map(run, groups))
        self.steps += max(steps)

    def _run_columns(self, limits: Tensor, max_steps: int, own: slice) -> int:
        # Buffers as wide as whole vectors: the loops over columns have no remainder then.
        width = own.stop - own.start
        wide = width + -width % _LANES

        def padded(part: Tensor) -> F64:
            buffer = np.zeros((*part.shape[:-1], wide))
            buffer[..., :width] = part[..., own].numpy()
            return buffer

        system, vals = self.system, self.system.vals
        buffers = padded(self.x), padded(self.r), padded(self.p), padded(self.rr)
        steps: int = _iterate(
            system.offsets.numpy(),
            system.cols.numpy(),
            vals.numpy() if vals.shape[1] == 1 else padded(vals),
            *buffers,
            padded(limits),
            max_steps,
        )
        for part, buffer in zip((self.x, self.r, self.p, self.rr), buffers):
            part.numpy()[..., own] = buffer[..., :width]
        return steps

    def _run_on_device(self, limits: Tensor, max_steps: int) -> None:
        """Whole blocks of iterations without a look at the numbers; done columns stand still."""
        offsets, cols, vals = self.system.offsets, self.system.cols, self.system.vals
        for start in range(0, max_steps, _STEPS):
            if bool((self.rr <= limits).all()):
                return
            for _ in range(min(_STEPS, max_steps - start)):
                ap = self.p - segment_sums(vals * self.p[cols], offsets)
                curvature = (self.p * ap).sum(0)
                runs = (self.rr > limits) & (curvature > 0)
                alpha = torch.where(runs, self.rr / curvature, 0.0)
                self.x, self.r = self.x + alpha * self.p, self.r - alpha * ap
                rr = self.r.square().sum(0)
                self.p = torch.where(runs, self.r + rr / self.rr * self.p, self.p)
                self.rr = rr
                self.steps += 1


def column_sums(x: Float64[Tensor, "n C"]) -> Float64[Tensor, " C"]:
    """Sums of the columns; a single one `torch.sum` would split by the number of threads."""
    return tree_sum(x.T)


@compiled
def _scale_entries(
    offsets: I64,
    cols: I64,
    edges: I64,
    weights: F64,
    scale: F64,
    free: NDArray[np.bool_],
    out_offsets: I64,
    out_cols: I64,
    out_vals: F64,
) -> int:
    """The entries of `System`; returns their number."""
    size, width = 0, weights.shape[1]
    for i in range(offsets.shape[0] - 1):
        if free[i]:
            for entry in range(offsets[i], offsets[i + 1]):
                j = cols[entry]
                if free[j]:
                    out_cols[size] = j
                    for c in range(width):
                        out_vals[size, c] = weights[edges[entry], c] * scale[i, c] * scale[j, c]
                    size += 1
        out_offsets[i + 1] = size
    return size


@compiled
def _iterate(
    offsets: I64,
    cols: I64,
    vals: F64,
    x: F64,
    r: F64,
    p: F64,
    rr: F64,
    limits: F64,
    max_steps: int,
) -> int:
    """Hestenes and Stiefel 1952 for the columns above their limits; returns the iterations."""
    num_rows, width = x.shape
    ap = np.empty_like(p)
    alpha, beta, gamma = np.zeros(width), np.zeros(width), np.zeros(width)
    curvature, rr_next = np.zeros(width), np.zeros(width)
    for step in range(max_steps):
        if not np.any(rr > limits):
            return step
        _multiply(offsets, cols, vals, p, ap)
        curvature[:] = 0
        for i in range(num_rows):
            own, image = p[i, :width], ap[i, :width]
            for c in range(width):
                curvature[c] += own[c] * image[c]
        for c in range(width):
            runs = rr[c] > limits[c] and curvature[c] > 0
            alpha[c] = rr[c] / curvature[c] if runs else 0.0
        rr_next[:] = 0
        for i in range(num_rows):
            own, image, at, rest = p[i, :width], ap[i, :width], x[i, :width], r[i, :width]
            for c in range(width):
                at[c] += alpha[c] * own[c]
                rest[c] -= alpha[c] * image[c]
                rr_next[c] += rest[c] * rest[c]
        for c in range(width):
            # A column that is done keeps its direction, should it be asked for more.
            beta[c] = rr_next[c] / rr[c] if alpha[c] > 0 else 1.0
            gamma[c] = 1.0 if alpha[c] > 0 else 0.0
            rr[c] = rr_next[c]
        if not np.any(gamma > 0):
            return step
        for i in range(num_rows):
            own, rest = p[i, :width], r[i, :width]
            for c in range(width):
                own[c] = gamma[c] * rest[c] + beta[c] * own[c]
    return max_steps


@compiled
def _multiply(offsets: I64, cols: I64, vals: F64, p: F64, out: F64) -> None:
    """(I - S) p, four neighbours at a time: that saves three of four loads and stores of sums."""
    width, is_shared = p.shape[1], vals.shape[1] == 1
    for i in range(offsets.shape[0] - 1):
        total, own, stop = out[i, :width], p[i, :width], offsets[i + 1]
        for c in range(width):
            total[c] = own[c]
        if not is_shared:
            for entry in range(offsets[i], stop):
                weight, other = vals[entry, :width], p[cols[entry], :width]
                for c in range(width):
                    total[c] -= weight[c] * other[c]
            continue
        last = stop - (stop - offsets[i]) % 4
        for e in range(offsets[i], last, 4):
            v0, v1, v2, v3 = vals[e, 0], vals[e + 1, 0], vals[e + 2, 0], vals[e + 3, 0]
            p0, p1 = p[cols[e], :width], p[cols[e + 1], :width]
            p2, p3 = p[cols[e + 2], :width], p[cols[e + 3], :width]
            for c in range(width):
                total[c] -= (v0 * p0[c] + v1 * p1[c]) + (v2 * p2[c] + v3 * p3[c])
        for e in range(last, stop):
            value, other = vals[e, 0], p[cols[e], :width]
            for c in range(width):
                total[c] -= value * other[c]
