"""Labels for rows that are no nodes, from the labeled graph: one more layer of the graph."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from .affinity import MIN_BANDWIDTH
from .kernels.cosine_zeros import add_zero_rows, is_zero
from .kernels.knn import Found, make_bank, search_bank
from .kernels.rows import Metric, prepare_rows

# Distributions of all neighbours of a block of queries are looked at together.
_BLOCK_NUMBERS = 1 << 22


@dataclass(frozen=True)
class LabeledRows:
    """A solved graph as new rows see it.

    Attributes:
        rows: As `kernels.rows.prepare_rows` makes them.
        bandwidth: Distance of each row to its last neighbour in the graph.
        probs: Class distribution of each row; zeros where no label has arrived.
        k: Neighbours of a new row.
    """

    rows: Float32[Tensor, "n D"]
    bandwidth: Float64[Tensor, " n"]
    probs: Float64[Tensor, "n C"]
    metric: Metric
    k: int

    def spread_to(self, features: Float[Tensor, "m D"]) -> Float64[Tensor, "m C"]:
        """Class distributions of any rows; zeros where no label arrives.

        p(x) = sum_j w_j p_j / sum_j w_j over the k nearest rows j that have a distribution, with
        the weights of the graph, w_j = exp(-4 d_j^2 / (eps_x eps_j)), eps_x = d_k. That is what
        the harmonic equation gives to x as a further node of the graph whose others stay as they
        are. A row that equals stored ones has the mean of their distributions, as the distance
        would: so a node of the graph has its own.
        """
        queries = prepare_rows(features, self.metric)
        ids, distances = _nearest(self.rows, queries, self.metric, self.k)
        out = torch.zeros(len(queries), self.probs.shape[1], dtype=torch.float64)
        step = max(1, _BLOCK_NUMBERS // max(1, self.k * self.probs.shape[1]))
        for start in range(0, len(queries), step):
            block = slice(start, start + step)
            out[block] = self._mix(ids[block], distances[block])
        return out

    def _mix(
        self, ids: Int64[Tensor, "m k"], distances: Float64[Tensor, "m k"]
    ) -> Float64[Tensor, "m C"]:
        theirs = self.probs[ids]
        has_probs = theirs.sum(2) > 0
        eps_x = distances[:, -1:].clamp(min=MIN_BANDWIDTH)
        eps_j = self.bandwidth[ids].clamp(min=MIN_BANDWIDTH)
        exponent = -4 * (distances / eps_x) * (distances / eps_j)
        is_same = distances == 0
        exponent = torch.where(is_same.any(1, keepdim=True) & ~is_same, -torch.inf, exponent)
        # Shares of the sum, from logarithms: far from all rows every weight would round to zero.
        share = torch.softmax(torch.where(has_probs, exponent, -torch.inf), 1).nan_to_num(0.0)
        return (share[:, :, None] * theirs).sum(1)


def _nearest(
    rows: Float32[Tensor, "n D"], queries: Float32[Tensor, "m D"], metric: Metric, k: int
) -> Found:
    """The k nearest rows of every query by (distance, number of the row)."""
    numbers = torch.arange(len(rows))
    searched, kept = torch.ones(len(queries), dtype=torch.bool), torch.ones_like(numbers).bool()
    if metric == "cosine":
        searched, kept = ~is_zero(queries), ~is_zero(rows)
    bank = make_bank(rows[kept], numbers[kept], metric)
    found = search_bank(bank, queries[searched], k)
    nobody = torch.full((len(queries),), -1)
    return add_zero_rows(found, searched, nobody, numbers[~kept], numbers, k)
