"""Symmetric weights over the edges of a kNN graph, in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, Shaped
from torch import Tensor

from .kernels.csr import Csr, row_sums, spmm, symmetrize
from .view import Reduce

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Identical points have a bandwidth of zero.
MIN_BANDWIDTH = 1e-10


def check_kind(kind: str, metric: str) -> None:
    """What both views refuse.

    Raises:
        ValueError: No such kind of affinity, or "power" of a Euclidean graph, whose 1 - d^2/2 is
            mostly negative: all weights would silently be zero.
    """
    if kind not in ("power", "self_tuning"):
        raise ValueError(f'affinity must be "power" or "self_tuning", got {kind!r}')
    if kind == "power" and metric == "euclidean":
        raise ValueError(
            'affinity "power" needs similarities, and a Euclidean graph has only distances; use '
            '"self_tuning", or build the graph with metric="cosine"'
        )


def power_weights(similarity: Float[Tensor, "*s"], gamma: float) -> Float64[Tensor, "*s"]:
    """max(0, s)^gamma: LPDSSL (Iscen et al., CVPR 2019), eq. 9.

    Raises:
        ValueError: gamma is not positive (0^0 would connect what is not similar at all).
    """
    if not gamma > 0:
        raise ValueError(f"gamma must be > 0, got {gamma}")
    return similarity.to(torch.float64).clamp(min=0).pow(gamma)


def self_tuning_weights(
    distances: Float[Tensor, "*s"],
    bandwidth_i: Float[Tensor, "*s"],
    bandwidth_j: Float[Tensor, "*s"],
) -> Float64[Tensor, "*s"]:
    """exp(-4 d^2 / (eps_i eps_j)), eps = distance to the k-th neighbour, at least 1e-10 (GLL)."""
    eps_i = bandwidth_i.to(torch.float64).clamp(min=MIN_BANDWIDTH)
    eps_j = bandwidth_j.to(torch.float64).clamp(min=MIN_BANDWIDTH)
    d = distances.to(torch.float64)
    return torch.exp(-4 * (d / eps_i) * (d / eps_j))


def bandwidths(distances: Float[Tensor, "n k"]) -> Float64[Tensor, " n"]:
    """Distance to the last existing neighbour; 0 where there is none."""
    d = distances.to(torch.float64)
    return torch.where(torch.isinf(d), 0.0, d).amax(1)


def scatter_rows(
    x: Shaped[Tensor, "m ..."], ids: Int64[Tensor, " m"], out: Tensor, reduce: Reduce
) -> Tensor:
    """Rows `ids` of `out` and `x` reduced; a new tensor."""
    index = ids.reshape(-1, *[1] * (x.ndim - 1)).expand_as(x)
    return out.scatter_reduce(0, index, x, reduce=reduce, include_self=True)


class LocalAffinity:
    """All rows of a symmetric, non-negative weight matrix with zero diagonal, in one process."""

    def __init__(self, csr: Csr) -> None:
        self.csr = csr
        self.num_nodes = csr.num_rows
        self._degrees = row_sums(csr)

    @property
    def degrees(self) -> Float[Tensor, " n"]:
        return self._degrees

    def matmul(self, f: Float[Tensor, "n C"]) -> Float[Tensor, "n C"]:
        return spmm(self.csr, f)

    @property
    def own_columns(self) -> slice:
        return slice(0, self.num_nodes)

    @property
    def node_ids(self) -> Int64[Tensor, " n"]:
        return torch.arange(self.num_nodes, device=self.csr.cols.device)

    def extend(self, f: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "n ..."]:
        return f

    def gather(self, x: Shaped[Tensor, "n ..."], ids: Int64[Tensor, " m"]) -> Tensor:
        return x[ids]

    def scatter(
        self, x: Shaped[Tensor, "m ..."], ids: Int64[Tensor, " m"], out: Tensor, reduce: Reduce
    ) -> Tensor:
        return scatter_rows(x, ids, out, reduce)

    def all_sum(self, x: Tensor) -> Tensor:
        return x

    def all_max(self, x: Tensor) -> Tensor:
        return x

    @classmethod
    def from_scipy(cls, matrix: csr_array) -> LocalAffinity:
        """Take a SciPy sparse matrix of any format.

        Raises:
            ValueError: Not square, NaN or infinite, negative, non-zero on the diagonal, or not
                symmetric.
        """
        csr = matrix.tocsr().astype(np.float64, copy=True)
        csr.sum_duplicates()
        csr.sort_indices()
        csr.eliminate_zeros()
        _check_weights(csr)
        return cls(
            Csr(
                torch.from_numpy(csr.indptr.astype(np.int64)),
                torch.from_numpy(csr.indices.astype(np.int64)),
                torch.from_numpy(csr.data),
                csr.shape[1],
            )
        )

    def to_scipy(self) -> csr_array:
        """The weights as a SciPy CSR array."""
        from scipy.sparse import csr_array

        parts = (
            self.csr.vals.cpu().numpy(),
            self.csr.cols.cpu().numpy(),
            self.csr.offsets.cpu().numpy(),
        )
        return csr_array(parts, shape=(self.num_nodes, self.num_nodes))


Affinity = LocalAffinity


def power_affinity(
    neighbor_ids: Int64[Tensor, "n k"], similarity: Float[Tensor, "n k"], gamma: float
) -> LocalAffinity:
    """W = A + A^T with A = max(0, similarity)^gamma on the kNN edges (LPDSSL)."""
    rows, cols, (values,) = edges(neighbor_ids, similarity)
    weights = power_weights(values, gamma)
    return LocalAffinity(symmetrize(rows, cols, weights, neighbor_ids.shape[0]))


def self_tuning_affinity(
    neighbor_ids: Int64[Tensor, "n k"], distances: Float[Tensor, "n k"]
) -> LocalAffinity:
    """w_ij = exp(-4 d_ij^2 / (eps_i eps_j)) on every pair of which one lists the other (GLL)."""
    rows, cols, (d,) = edges(neighbor_ids, distances)
    eps = bandwidths(distances)
    weights = self_tuning_weights(d, eps[rows], eps[cols])
    return LocalAffinity(symmetrize(rows, cols, weights, neighbor_ids.shape[0], reduce="amax"))


def edges(
    neighbor_ids: Int64[Tensor, "n k"], *columns: Float[Tensor, "n k"]
) -> tuple[Int64[Tensor, " e"], Int64[Tensor, " e"], tuple[Tensor, ...]]:
    """Rows, neighbours and the columns' values of the edges that exist (id >= 0)."""
    rows, slots = (neighbor_ids >= 0).nonzero(as_tuple=True)
    return rows, neighbor_ids[rows, slots], tuple(column[rows, slots] for column in columns)


def _check_weights(csr: csr_array) -> None:
    if csr.shape[0] != csr.shape[1]:
        raise ValueError(f"weights must be a square matrix, got shape {csr.shape}")
    if not np.isfinite(csr.data).all():
        raise ValueError("weights contain NaN or infinity; remove these entries")
    if (csr.data < 0).any():
        raise ValueError(f"weights must not be negative, the smallest is {csr.data.min()}")
    if csr.diagonal().any():
        node = int(np.flatnonzero(csr.diagonal())[0])
        raise ValueError(f"node {node} has a weight to itself; set the diagonal to zero")
    if csr.nnz and abs(csr - csr.T).max() > 1e-12 * csr.data.max():
        raise ValueError("weights must be symmetric; use (w + w.T) / 2 or w.maximum(w.T)")
