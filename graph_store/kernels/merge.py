"""Merging lists of neighbours by (distance, id)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float64, Int64
from torch import Tensor

Found = tuple[Int64[Tensor, "m k"], Float64[Tensor, "m k"]]

# So many times k candidates are worth a selection before they are sorted.
WIDE = 8


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
    if all_ids.shape[1] > WIDE * k:
        near = _near(all_distances, k)
        all_ids, all_distances = all_ids.gather(1, near), all_distances.gather(1, near)
    by_id = all_ids.argsort(dim=1)
    by_distance = all_distances.gather(1, by_id).argsort(dim=1, stable=True)
    order = by_id.gather(1, by_distance)[:, :k]
    return all_ids.gather(1, order), all_distances.gather(1, order)


def _near(distances: Float64[Tensor, "m c"], k: int) -> Int64[Tensor, "m d"]:
    """Columns of the k smallest values of each row, and of all that equal the k-th."""
    if 0 in distances.shape or k == 0:
        return distances.new_empty((distances.shape[0], 0), dtype=torch.int64)
    smallest = distances.topk(k, dim=1, largest=False, sorted=False)
    width = int((distances <= smallest.values.amax(1, keepdim=True)).sum(1).max())
    if width == k:
        return smallest.indices
    return distances.topk(width, dim=1, largest=False, sorted=False).indices
