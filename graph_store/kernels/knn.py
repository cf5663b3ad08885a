"""Exact k nearest neighbours of rows, blocked: GEMM filters, the canonical distance decides.

Neighbours are ordered by (canonical distance, id); see `rows.canonical_distances`. Products of
float32 rows only preselect k + pad candidates per query; `scaling` says how far they can be off. A
query whose k-th canonical distance is not below the last preselected value by that much is searched
again with float64 products, and every row that these cannot exclude is ranked. So results equal a
brute force over canonical distances, ids and order, on any device and with any number of threads.

Distances are returned in float64 (for "inner_product": minus the inner product). Merge them
in float64, and round to float32 only what is stored.
"""

from __future__ import annotations

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from . import knn_cells, knn_cpu, knn_device
from .cells_choice import choose_cells
from .knn_cpu import Search
from .merge import Found, merge_topk
from .rows import (
    Metric,
    canonical_distances,
    normalize_rows,
    prepare_rows,
    similarity_from_distance,
    tree_sum,
)
from .scaling import Bank, make_bank

__all__ = [
    "Bank",
    "Found",
    "Metric",
    "canonical_distances",
    "knn_blocked",
    "knn_self_join",
    "make_bank",
    "merge_topk",
    "normalize_rows",
    "prepare_rows",
    "search_bank",
    "similarity_from_distance",
    "tree_sum",
]


def knn_blocked(
    queries: Float32[Tensor, "m D"],
    bank: Float32[Tensor, "n D"],
    k: int,
    *,
    query_ids: Int64[Tensor, " m"] | None = None,
    bank_ids: Int64[Tensor, " n"] | None = None,
    metric: Metric = "euclidean",
) -> Found:
    """The k nearest bank rows of every query, by (canonical distance, id).

    Args:
        queries, bank: Rows as `prepare_rows` makes them, on one device.
        k: At least 1. Results are padded with -1/inf where the bank has fewer rows.
        query_ids: Nodes that the queries are; the bank row of the same id is left out.
        bank_ids: Ids of the bank rows, distinct and not negative; their numbers by default.
        metric: "euclidean" ranks by distance (and so does "cosine", whose rows are unit rows).

    Cost:
        m n D multiplications and one comparison per product; memory of a copy of the rows.
    """
    if bank_ids is None:
        bank_ids = torch.arange(bank.shape[0], device=bank.device)
    return search_bank(make_bank(bank, bank_ids, metric), queries, k, query_ids)


def search_bank(
    bank: Bank,
    queries: Float32[Tensor, "m D"],
    k: int,
    query_ids: Int64[Tensor, " m"] | None = None,
) -> Found:
    """`knn_blocked` with a bank that is kept for several searches."""
    task = make_search(bank, queries, k, query_ids)
    is_cpu = task.bank.rows.device.type == "cpu"
    return knn_cpu.search(task) if is_cpu else knn_device.search(task)


def knn_self_join(
    rows: Float32[Tensor, "n D"],
    k: int,
    ids: Int64[Tensor, " n"] | None = None,
    *,
    metric: Metric = "euclidean",
) -> Found:
    """`knn_blocked` of a bank in itself.

    Each pair of blocks is multiplied once; on the CPU, only what the bounds of cells leave over
    where a sample tells that this is little.
    """
    own = torch.arange(rows.shape[0], device=rows.device) if ids is None else ids
    task = make_search(make_bank(rows, own, metric), rows, k, own)
    if rows.device.type != "cpu":
        return knn_device.self_join(task)
    cells = choose_cells(task)
    return knn_cpu.self_join(task) if cells is None else knn_cells.search(task, cells)


def make_search(
    bank: Bank,
    queries: Float32[Tensor, "m D"],
    k: int,
    query_ids: Int64[Tensor, " m"] | None,
) -> Search:
    """What the searches of `knn_cpu` and `knn_device` take."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if query_ids is None:
        query_ids = torch.full(queries.shape[:1], -1, device=queries.device)
    bank, filter = bank.filter(queries)
    return Search(queries.contiguous(), query_ids, bank, filter, k)
