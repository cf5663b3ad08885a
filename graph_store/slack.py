"""How long the kept lists should be: long enough to outlast the drift that was seen.

A list of K nodes certifies its row while the gap between the k-th neighbour and the first node
outside is more than the drift of the row and of the others. The gap grows slowly with K, in high
dimension very slowly: where no list that is worth its memory would do, lists are kept short.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float32
from torch import Tensor

from .kernels.knn import merge_topk, search_bank
from .kernels.knn_cpu import PAD
from .kernels.scaling import Frame, bank_in_frame
from .peers import Peers

SAMPLE = 128
# A row loses its own drift and theta, which is more than the median; and it should last a while.
DRIFTS = 3.0
CERTIFIED_SHARE = 0.95


def default_slack(k: int) -> int:
    """List size before any drift was seen: enough where a few per cent of the rows move."""
    return max(PAD, 2 * k + 2)


def shortest_slack(k: int) -> int:
    """List size where nothing can be saved: room for rounding alone."""
    return k + PAD


def choose_slack(
    peers: Peers,
    rows: Float32[Tensor, "n D"],
    active: Bool[Tensor, " n"],
    frame: Frame,
    k: int,
    drift: float,
    total: int,
) -> int:
    """The smallest list size that certifies 95 % of a sample of rows under such a drift.

    Where none up to 8 k does, k + 8: room for rounding alone. Collective.

    Args:
        drift: Median drift of a row between two updates, in units of the rows.
        total: Active rows of all shards.
    """
    longest = max(1, min(8 * k, total - 2))
    stride = max(1, total // SAMPLE)
    own = active.nonzero()[:, 0]
    offset = sum(peers.counts(len(own))[: peers.rank])
    at = own[(torch.arange(len(own), device=own.device) + offset) % stride == 0]
    bank = bank_in_frame(rows[own], own + peers.start, frame)
    profiles = rows.new_empty(0, longest + 1, dtype=torch.float64)
    for root, _, (queries, ids) in peers.blocks(rows[at], at + peers.start):
        found, distances = search_bank(bank, queries, longest + 1, ids)
        parts = peers.collect(found, root), peers.collect(distances, root)
        if root == peers.rank:
            profiles = torch.cat([profiles, merge_topk(*parts, longest + 1)[1]])
    profiles = peers.concat(profiles)
    sizes = (2 * k + 2, 3 * k + 3, 4 * k + 4, 6 * k + 4, 8 * k)
    for size in (s for s in sizes if PAD <= s <= longest):
        is_certified = profiles[:, k - 1] + DRIFTS * drift < profiles[:, size]
        if float(is_certified.double().mean()) >= CERTIFIED_SHARE:
            return size
    return shortest_slack(k)
