"""Rows as the graph stores them, and the one distance between them that decides an order.

Everything that ranks neighbours (build, merge over shards, update, tests) uses the functions here.
They are made of elementwise operations in a fixed order, so their value depends on the two rows
alone: not on the block, the shard, the number of threads or the device they were computed in.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64, Shaped
from torch import Tensor

from . import rows_compiled
from .compiled import for_each_range, split_rows

Metric = Literal["euclidean", "cosine", "inner_product"]

# Buffers of the float64 differences stay below this many numbers.
_BUFFER_NUMBERS = 1 << 22


def prepare_rows(features: Float[Tensor, "n D"], metric: Metric) -> Float32[Tensor, "n D"]:
    """Turn features into the float32 rows that a graph is built on.

    Unit rows for "cosine" (d^2 = 2 - 2 cos, so the cosine graph is the Euclidean graph of unit
    rows); the features themselves, in float32, for "euclidean" and "inner_product".
    """
    if metric == "cosine":
        return normalize_rows(features)
    return features.to(torch.float32)


def normalize_rows(x: Float[Tensor, "n D"]) -> Float32[Tensor, "n D"]:
    """Scale every row to length 1 in float64, then round to float32; zero rows stay zero."""
    rows = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    if x.device.type == "cpu":
        wide = x.detach() if x.dtype == torch.float64 else x.detach().to(torch.float32)
        given, out = wide.contiguous().numpy(), rows.numpy()
        ranges = split_rows(len(rows), rows.numel())
        for_each_range(lambda a, b: rows_compiled.normalize(given[a:b], out[a:b]), ranges)
        return rows
    step = max(1, _BUFFER_NUMBERS // max(1, x.shape[1]))
    for start in range(0, x.shape[0], step):
        part = x[start : start + step].to(torch.float64)
        # Scaling by the largest entry first keeps squares of 1e200 or 1e-200 in range.
        largest = part.abs().amax(-1, keepdim=True) if x.shape[1] else part.sum(-1, keepdim=True)
        part = part / torch.where(largest > 0, largest, 1.0)
        length = exact_sqrt(tree_sum(part.square()))[:, None]
        rows[start : start + step] = part / torch.where(length > 0, length, 1.0)
    return rows


def tree_sum(terms: Shaped[Tensor, "*rows D"]) -> Shaped[Tensor, "*rows"]:
    """Sum over the last dimension by adding its second half to its first until one is left.

    `torch.sum` chooses its order of additions by shape, layout and device; this one does not.
    """
    if terms.shape[-1] == 0:
        return terms.sum(-1)
    buffer, width = terms.clone(), terms.shape[-1]
    while width > 1:
        half = (width + 1) // 2
        buffer[..., : width - half] += buffer[..., half:width]
        width = half
    return buffer[..., 0].contiguous()


def canonical_distances(
    a_rows: Float32[Tensor, "*pairs D"],
    b_rows: Float32[Tensor, "*pairs D"],
    metric: Metric = "euclidean",
) -> Float64[Tensor, "*pairs"]:
    """Distance of each listed pair of rows, the number by which neighbours are ordered.

    Euclidean: the square root of the `tree_sum` of squared float64 differences. "inner_product":
    minus the `tree_sum` of the products, so that smaller is nearer there too.

    The result is float64: rounded to float32, two neighbours of nearly equal distance would
    become a tie and change places. Round only what is final.
    """
    a, b = a_rows.to(torch.float64), b_rows.to(torch.float64)
    if metric == "inner_product":
        return -tree_sum(a * b)
    return exact_sqrt(tree_sum((a - b).square()))


def exact_sqrt(x: Float64[Tensor, "*s"]) -> Float64[Tensor, "*s"]:
    """The correctly rounded square root; torch's own is now and then off by a bit on the CPU."""
    return torch.from_numpy(np.asarray(np.sqrt(x.numpy()))) if x.device.type == "cpu" else x.sqrt()


def similarity_from_distance(distances: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """1 - d^2/2: the cosine of unit rows; 0 where there is no neighbour (d = inf)."""
    return torch.where(torch.isinf(distances), 0.0, 1.0 - distances.square() / 2)
