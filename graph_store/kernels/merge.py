"""Merging lists of neighbours by (distance, id)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

Found = tuple[Int64[Tensor, "m k"], Float64[Tensor, "m k"]]


def merge_topk(
    ids: Sequence[Int64[Tensor, "m _"]], distances: Sequence[Float64[Tensor, "m _"]], k: int
) -> Found:
    """The k nearest of several candidate lists per query, by (distance, id).

    Independent of the order of the lists. Candidates with id -1 are ignored; results are padded
    with -1/inf. A candidate must not occur in two lists.
    """
    all_ids, all_distances = torch.cat(list(ids), 1), torch.cat(list(distances), 1)
    all_distances = torch.where(all_ids < 0, torch.inf, all_distances)
    if all_ids.shape[1] < k:
        missing = (all_ids.shape[0], k - all_ids.shape[1])
        all_ids = torch.cat([all_ids, all_ids.new_full(missing, -1)], 1)
        all_distances = torch.cat([all_distances, all_distances.new_full(missing, torch.inf)], 1)
    by_id = all_ids.argsort(dim=1)
    by_distance = all_distances.gather(1, by_id).argsort(dim=1, stable=True)
    order = by_id.gather(1, by_distance)[:, :k]
    return all_ids.gather(1, order), all_distances.gather(1, order)
