"""Measured recall of a kNN graph: exact neighbours of a random sample of its nodes decide.

Recall of a node is the share of its k nearest others that its list has. A listed neighbour as near
as the k-th of them counts, so that ties do not depend on ids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from .exchange import Exchange, OneProcess
from .kernels.knn import Metric, make_bank, search_bank
from .store import KnnReport

# Two-sided 95 %: quantile of the normal distribution and share of each tail.
_QUANTILE, _TAIL = 1.96, 0.025


@dataclass(frozen=True)
class Recall:
    """Mean recall per node with a 95 % confidence interval.

    Attributes:
        value: Over the sampled nodes that have neighbours; 1 where none has.
        low, high: The interval; equal to `value` where all nodes were measured.
        sample_size: Nodes that it was measured on.
    """

    value: float
    low: float
    high: float
    sample_size: int


def measured(report: KnnReport, recall: Recall) -> KnnReport:
    """The report of an approximate graph: nothing but its recall is known."""
    return replace(
        report, exact=False, recall=recall.value, recall_low=recall.low, bound=float("inf")
    )


def choose_sample(num_nodes: int, size: int, seed: int) -> Int64[Tensor, " m"]:
    """`size` distinct node ids (all where there are fewer), ascending; the same on every shard.

    Raises:
        ValueError: `size` is less than 1.
    """
    if size < 1:
        raise ValueError(f"the sample needs at least 1 node, got size = {size}")
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(num_nodes, generator=generator)[:size].sort().values


def recall_of(
    found_ids: Int64[Tensor, "m k"],
    found_distances: Float64[Tensor, "m k"],
    true_distances: Float64[Tensor, "m k"],
    *,
    num_nodes: int | None = None,
) -> Recall:
    """Recall of lists of sampled nodes.

    The interval is the normal one for the mean over nodes, widened for kinds of nodes that the
    sample has missed: with probability 97.5 % they are at most 1 - 0.025^(1/m) of all nodes
    (Clopper and Pearson, Biometrika 1934), and their recall may be anything. So the lower end is
    0.025^(1/m) where all neighbours were found, and never 1.

    Args:
        found_ids, found_distances: The lists, -1/inf where shorter; canonical distances.
        true_distances: Of the k nearest others, ascending, inf where there are fewer.
        num_nodes: Of the whole graph, if known: a sample of all of it leaves nothing to chance.

    Example:
        >>> found = torch.tensor([[1, 2], [0, 2]]), torch.tensor([[1.0, 5.0], [1.0, 2.0]]).double()
        >>> recall_of(*found, torch.tensor([[1.0, 3.0], [1.0, 2.0]]).double(), num_nodes=2)
        Recall(value=0.75, low=0.75, high=0.75, sample_size=2)
    """
    exists = torch.isfinite(true_distances)
    num_true = exists.sum(1)
    farthest = torch.where(exists, true_distances, -torch.inf).amax(1, keepdim=True)
    is_hit = (found_ids >= 0) & (found_distances <= farthest)
    has_any = num_true > 0
    num_hits = is_hit.sum(1).minimum(num_true).to(torch.float64)
    shares = num_hits[has_any] / num_true[has_any]
    size = shares.shape[0]
    value = float(shares.mean()) if size else 1.0
    if found_ids.shape[0] == num_nodes:
        return Recall(value, value, value, size)
    if size == 0:
        return Recall(value, 0.0, 1.0, 0)
    half = _QUANTILE * float(shares.std(correction=1)) / math.sqrt(size) if size > 1 else 0.0
    seen = highest_low(size)
    low = seen * max(0.0, value - half)
    high = seen * min(1.0, value + half) + 1.0 - seen
    return Recall(value, low, high, size)


def highest_low(sample_size: int) -> float:
    """The lower end of the interval where a sample's lists lack nothing."""
    return float(_TAIL ** (1.0 / sample_size))


def measure_recall(
    rows: Float32[Tensor, "n D"],
    neighbor_ids: Int64[Tensor, "n k"],
    distances: Float64[Tensor, "n k"],
    *,
    present: Bool[Tensor, " n"] | None = None,
    exchange: Exchange | None = None,
    sample_size: int = 1000,
    seed: int = 0,
    metric: Metric = "euclidean",
) -> Recall:
    """Recall of a graph over prepared rows, whose lists have canonical distances.

    Args:
        present: Nodes that exist; None = all.
        exchange: With the other shards; the columns are the own rows then, and the call is
            collective. None in one process.

    Cost:
        `sample_size` exact searches: `sample_size` n D multiplications.
    """
    exchange = exchange or OneProcess(rows.shape[0])
    if present is None:
        present = torch.ones(rows.shape[0], dtype=torch.bool, device=rows.device)
    sample = choose_sample(exchange.num_nodes, sample_size, seed).to(rows.device)
    truth = true_distances(exchange, rows, present, sample, neighbor_ids.shape[1], metric)
    return recall_of_sample(exchange, neighbor_ids, distances, sample, truth)


def true_distances(
    exchange: Exchange,
    rows: Float32[Tensor, "n D"],
    present: Bool[Tensor, " n"],
    sample: Int64[Tensor, " m"],
    k: int,
    metric: Metric = "euclidean",
) -> Float64[Tensor, "m k"]:
    """Distances of the k nearest of every sampled node, inf for absent ones. Collective."""
    (table, is_there), places = exchange.fetch([rows, present], sample)
    own_ids = torch.arange(rows.shape[0], device=rows.device) + exchange.start
    bank = make_bank(rows[present], own_ids[present], metric)
    found = exchange.merge(search_bank(bank, table[places], k, sample), k)
    return torch.where(is_there[places][:, None], found[1], torch.inf)


def recall_of_sample(
    exchange: Exchange,
    neighbor_ids: Int64[Tensor, "n k"],
    distances: Float64[Tensor, "n k"],
    sample: Int64[Tensor, " m"],
    truth: Float64[Tensor, "m k"],
) -> Recall:
    """`recall_of` the sampled nodes' lists, wherever they are. Collective."""
    (ids, canonical), places = exchange.fetch([neighbor_ids, distances], sample)
    return recall_of(ids[places], canonical[places], truth, num_nodes=exchange.num_nodes)
