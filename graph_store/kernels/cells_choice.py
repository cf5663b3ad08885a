"""Whether a graph is worth building through cells, told from a sample before rows are grouped.

Rows in clusters or near a manifold of few dimensions look at a few hundredths of each other.
Isotropic rows look at all, and then two searches through cells, one for either side, cost more than
the one product that serves both.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from jaxtyping import Float32
from torch import Tensor

from .cells import Cells, assign, group_rows, make_centers
from .compiled import task_threads
from .knn_cpu import Search, preselect
from .scaling import Scaled

# With fewer rows the search of everything is over before cells are made.
MIN_ROWS = 30_000
# Up to this predicted share of all pairs, cells were faster than the search of everything.
MAX_SHARE = 0.045
# Sizes of the samples that the share is predicted from.
_QUERIES = 48
_MEMBERS = 3072


def choose_cells(task: Search, seed: int = 0) -> Cells | None:
    """Cells for a search of a bank in itself, or None where these would not save time.

    Cost:
        One to two hundredths of the search itself where the answer is None.
    """
    num_rows = task.bank.rows.shape[0]
    if num_rows < MIN_ROWS or task.filter.frame.is_product:
        return None
    # One thread: handing out such small work takes longer than doing it.
    with task_threads():
        centers = make_centers(task.filter.bank, default_cells(num_rows), seed)
        share = predict_share(task, centers, seed)
    if share > MAX_SHARE:
        return None
    return group_rows(task.filter.bank, centers)


def default_cells(num_rows: int) -> int:
    """Enough to prune, and few enough for products of a useful size."""
    return max(1, round(math.sqrt(num_rows) / 2))


def predict_share(task: Search, centers: Float32[Tensor, "C D"], seed: int = 0) -> float:
    """Share of all pairs that a search through the cells of these centers would look at.

    A sample of the bank's rows is searched in everything, and the bounds of `cells` are applied to
    the pairs of these and of a larger sample. What comes on top is left out: lists are long while
    they start, and rectangles hold a few pairs that nobody needs.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(task.bank.rows.shape[0], generator=generator)
    picked, members = order[:_QUERIES], _select(task.filter.bank, order[:_MEMBERS])
    queries = _select(task.filter.bank, picked)
    sample = dataclasses.replace(
        task,
        queries=task.bank.rows[picked],
        query_ids=task.bank.ids[picked],
        filter=dataclasses.replace(task.filter, queries=queries),
    )
    radii = preselect(sample).keys[:, -1].clamp(min=0).mul(2).sqrt()
    own, theirs = assign(queries, centers).own, assign(members, centers)
    products = queries.rows @ centers.T
    gaps = torch.cdist(centers, centers)[own]
    # Row q, column c: what a member's projection must reach for query q to need it.
    least = products.gather(1, own[:, None]) - products - radii[:, None] * gaps
    projections = centers[own] @ members.rows.T - theirs.products
    return float(torch.ge(projections, least[:, theirs.own]).double().mean())


def _select(scaled: Scaled, picked: Tensor) -> Scaled:
    return Scaled(scaled.rows[picked], scaled.half[picked])
