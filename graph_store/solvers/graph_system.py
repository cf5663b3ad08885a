"""Linear systems of a weighted graph: A = diag(d) - diag(s) W diag(s), prepared once, solved fast.

All linear solvers here are of this form: Laplace learning with d = degrees and s the indicator of
the unlabeled nodes, local and global consistency and Poisson learning with d = 1 and
s ~ degrees^-1/2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from ..kernels.cg_steps import even_segments
from ..kernels.graph_operator import GraphOperator, group_sums, scaled_operator
from ..view import Affinity
from .aggregation import MIN_NODES, aggregates, num_aggregates
from .conjugate_gradient import CgResult, Coarse, conjugate_gradient

OnSolve = Callable[[CgResult], None]
"""Called with the outcome of each linear solve: iterations, residuals and their history."""

# Eigenvalues of the coarse matrix, relative to its Jacobi part, that are rounding noise of 0.
_NOISE = {torch.float64: 1e-12, torch.float32: 1e-6}


@dataclass(frozen=True)
class GraphSystem:
    """A on the own rows, in an order that keeps groups of neighbours together.

    Attributes:
        order: Own row at each place of that order.
        place: Its inverse.
        coarse: Second level of the preconditioner; None on small graphs.
    """

    w: Affinity
    operator: GraphOperator
    order: Int64[Tensor, " n"]
    place: Int64[Tensor, " n"]
    inverse_diagonal: Float[Tensor, " n"]
    coarse: Coarse | None

    def solve(
        self,
        rhs: Float[Tensor, "n C"],
        *,
        x0: Float[Tensor, "n C"] | None = None,
        tol: float,
        max_iter: int,
        on_solve: OnSolve | None = None,
    ) -> CgResult:
        """Solve A X = B; see `conjugate_gradient`. Rows go in and come out in the graph's order."""
        dtype = self.operator.vals.dtype
        inner = conjugate_gradient(
            self._apply,
            rhs.to(dtype)[self.order],
            all_sum=self.w.all_sum,
            x0=None if x0 is None else x0.to(dtype)[self.order],
            inverse_diagonal=self.inverse_diagonal,
            coarse=self.coarse,
            tol=tol,
            max_iter=max_iter,
        )
        result = replace(inner, solution=inner.solution[self.place])
        if on_solve is not None:
            on_solve(result)
        return result

    def _apply(self, f: Float[Tensor, "n c"]) -> Float[Tensor, "n c"]:
        if is_whole(self.w):
            return self.operator(f, f)
        return self.operator(f, self.w.extend(f[self.place]))


def graph_system(
    w: Affinity,
    *,
    diagonal: Float64[Tensor, " n"],
    scale: Float64[Tensor, " n"],
    dtype: torch.dtype = torch.float64,
    min_nodes: int = MIN_NODES,
) -> GraphSystem:
    """Prepare A = diag(diagonal) - diag(scale) W diag(scale).

    The preconditioner has two levels: Jacobi, and the exact inverse on a coarse space of vectors
    that are 1 / scale on one group of nodes (see `aggregation`) and 0 elsewhere. Their span holds
    what A maps to nearly nothing: u constant over clusters for Laplace, D^1/2 u for the others.

    Args:
        diagonal: Positive.
        scale: Rows with scale 0 are decoupled: diagonal x = b.
        dtype: Of the solution; sums are float64.
        min_nodes: Smaller graphs get no coarse space; many right-hand sides pay for it earlier.

    Cost:
        The edges once more (12 bytes each in float64), g^2 numbers for g groups.
    """
    device = w.csr.cols.device
    whole = is_whole(w)
    count = num_aggregates(w.num_nodes, min_nodes)
    num_own = w.csr.num_rows
    group = aggregates(w, count) if count else torch.full((num_own,), -1, device=device)
    # Rows without a group come last.
    order = torch.where(group < 0, count, group).argsort(stable=True)
    place = torch.empty_like(order)
    place[order] = torch.arange(num_own, device=device)
    col_scale = w.extend(scale)
    col_places = place if whole else torch.arange(w.csr.num_cols, device=device)
    operator = scaled_operator(w.csr, diagonal, scale, col_scale, order, col_places, dtype)
    coarse = None
    if count:
        basis = torch.where(scale > 0, 1 / scale.clamp(min=1e-300), 0.0)
        coarse = _coarse(w, operator, group[order], basis[order], place, count, dtype)
    return GraphSystem(w, operator, order, place, 1 / operator.diagonal, coarse)


def is_whole(w: Affinity) -> bool:
    """Whether all rows live here."""
    return w.csr.num_rows == w.num_nodes


def _coarse(
    w: Affinity,
    operator: GraphOperator,
    group: Int64[Tensor, " n"],
    basis: Float64[Tensor, " n"],
    place: Int64[Tensor, " n"],
    count: int,
    dtype: torch.dtype,
) -> Coarse:
    """The coarse space of the groups; `group` and `basis` in the operator's order."""
    columns = (group, basis) if is_whole(w) else (w.extend(group[place]), w.extend(basis[place]))
    known = group >= 0
    squares = (operator.diagonal.to(torch.float64) * basis.square())[known]
    energy = w.all_sum(squares.new_zeros(count).index_add(0, group[known], squares))
    sums = w.all_sum(group_sums(operator, group, basis, *columns, count))
    inverse = _pseudo_inverse(sums, energy, _NOISE[dtype])
    ends = torch.bincount(group[group >= 0], minlength=count).cumsum(0)
    rest = even_segments(group.shape[0] - int(ends[-1]), group.device) + ends[-1]
    return Coarse(torch.cat([ends.new_zeros(1), ends, rest[1:]]), basis, inverse)


def _pseudo_inverse(
    sums: Float64[Tensor, "g g"], energy: Float64[Tensor, " g"], noise: float
) -> Float64[Tensor, "g g"]:
    """Inverse on the eigenvectors of E^-1/2 `sums` E^-1/2, E = diag(energy), above the noise.

    A singular A makes the coarse matrix singular; were the noise inverted, it would swamp what
    conjugate gradients search for. Groups without a free node have energy 0 and count for nothing.
    """
    scale = torch.where(energy > 0, energy.clamp(min=1e-300).rsqrt(), 0.0)
    scaled = scale[:, None] * sums * scale
    values, vectors = torch.linalg.eigh((scaled + scaled.T) / 2)
    inverse = torch.where(values > noise, 1 / values.clamp(min=noise), 0.0)
    lifted = scale[:, None] * vectors
    product: Tensor = (lifted * inverse) @ lifted.T
    return product
