"""k nearest rows within a batch, for float32 and float64 rows."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from .knn import knn_self_join


def nearest(
    rows: Float[Tensor, "n D"], k: int
) -> tuple[Int64[Tensor, "n k"], Float64[Tensor, "n k"]]:
    """The k nearest other rows by (distance, row number)."""
    if rows.dtype == torch.float32:
        return knn_self_join(rows.contiguous(), k)
    ids, distances = [], []
    for start in range(0, len(rows), 512):
        d = torch.cdist(
            rows[start : start + 512], rows, compute_mode="donot_use_mm_for_euclid_dist"
        )
        own = torch.arange(len(d), device=rows.device)
        d[own, own + start] = torch.inf
        near = d.sort(dim=1, stable=True)
        ids.append(near.indices[:, :k])
        distances.append(near.values[:, :k])
    return torch.cat(ids), torch.cat(distances)
