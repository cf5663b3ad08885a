"""Search with faiss, re-ranked so that it agrees with torch. The only importer of faiss.

faiss is imported on first use. Its GPUs are used only for rows that lie on one, and only after
asking how many there are: on a machine without a driver, GPU calls of faiss-gpu abort the process,
which cannot be caught, so this question must not become a `try`.

Both indices preselect by float32 arithmetic and rank by canonical distance.
"""

from __future__ import annotations

from math import isqrt
from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from .kernels.knn import Bank, Found, Metric, make_bank, make_search, search_bank
from .kernels.knn_cpu import PAD, Candidates, Search, rank_candidates

# Most neighbours that faiss' GPU search returns.
MAX_GPU_NEIGHBORS = 2048


class FaissIndex:
    """A flat faiss index over prepared rows; ids, order and distances are those of `TorchIndex`.

    faiss preselects k + pad rows; queries of which its rounding may have left out a neighbour are
    searched again.
    """

    is_exact = True

    def __init__(
        self,
        rows: Float32[Tensor, "n D"],
        ids: Int64[Tensor, " n"],
        metric: Metric = "euclidean",
    ) -> None:
        self._bank = make_bank(rows.cpu().contiguous(), ids.cpu(), metric)
        is_product = self._bank.frame.is_product
        self._flat, self._on_gpu = _flat_index(
            self._bank.scaled.rows.numpy(), is_product, on_gpu=rows.device.type == "cuda"
        )

    def search(
        self,
        queries: Float32[Tensor, "m D"],
        k: int,
        query_ids: Int64[Tensor, " m"] | None = None,
    ) -> Found:
        own = None if query_ids is None else query_ids.cpu()
        task = make_search(self._bank, queries.detach().cpu(), k, own)
        # One more than the list, because faiss may spend one on the query itself.
        num_rows = self._bank.rows.shape[0]
        size = min(k + PAD + 1, num_rows)
        is_too_many = self._on_gpu and size > MAX_GPU_NEIGHBORS
        if task.bank is not self._bank or num_rows == 0 or is_too_many:
            return search_bank(self._bank, task.queries, k, own)
        lists, farthest = _preselect(self._flat, task, size)
        bounds = farthest if size < num_rows else torch.full_like(farthest, torch.inf)
        return rank_candidates(task, lists, bounds)


class FaissIvfIndex:
    """Approximate search on the CPU: only the cells nearest to a query are looked at.

    faiss' IVFFlat: k-means puts the rows into `nlist` cells, and a query sees the rows of the
    `nprobe` nearest ones. Distances are canonical, and queries that find fewer than k there are
    searched exactly, so that lists are as long as those of the exact backends.

    Args:
        nlist: Cells; by default sqrt(n), and few enough for k-means to have 39 rows of each.
        nprobe: Cells that are looked at; by default 1 of 32, and at least 8.
        seed: Of k-means.

    Raises:
        ValueError: faiss is not installed, or a number out of range.
    """

    is_exact = False

    def __init__(
        self,
        rows: Float32[Tensor, "n D"],
        ids: Int64[Tensor, " n"],
        metric: Metric = "euclidean",
        nlist: int | None = None,
        nprobe: int | None = None,
        seed: int = 0,
    ) -> None:
        self._bank = make_bank(rows.cpu().contiguous(), ids.cpu(), metric)
        num_rows = rows.shape[0]
        most = max(1, num_rows)
        self.nlist = max(1, min(isqrt(num_rows), num_rows // 39)) if nlist is None else nlist
        if not 1 <= self.nlist <= most:
            raise ValueError(f"nlist must lie in 1..{most}, the number of rows, got {nlist}")
        self.nprobe = min(self.nlist, max(8, self.nlist // 32)) if nprobe is None else nprobe
        if not 1 <= self.nprobe <= self.nlist:
            raise ValueError(f"nprobe must lie in 1..{self.nlist}, which is nlist, got {nprobe}")
        self._cells = _ivf_index(self._bank, self.nlist, seed)
        self._cells.nprobe = self.nprobe

    def search(
        self,
        queries: Float32[Tensor, "m D"],
        k: int,
        query_ids: Int64[Tensor, " m"] | None = None,
    ) -> Found:
        own = None if query_ids is None else query_ids.cpu()
        task = make_search(self._bank, queries.detach().cpu(), k, own)
        num_rows = self._bank.rows.shape[0]
        if task.bank is not self._bank or num_rows == 0:
            return search_bank(self._bank, task.queries, k, own)
        lists, farthest = _preselect(self._cells, task, min(k + PAD + 1, num_rows))
        found = rank_candidates(task, lists, torch.full_like(farthest, torch.inf))
        short = (found[0][:, -1] < 0).nonzero()[:, 0]
        if short.numel() and num_rows > (found[0][short] >= 0).sum(1).min():
            exact = search_bank(self._bank, task.queries[short], k, task.query_ids[short])
            found[0][short], found[1][short] = exact
        return found


def _preselect(index: Any, task: Search, size: int) -> tuple[Candidates, Float32[Tensor, " m"]]:
    """faiss' nearest rows of each query without itself, and the key of the farthest."""
    values, positions = index.search(task.filter.queries.rows.numpy(), size)
    keys = torch.from_numpy(-values if task.filter.frame.is_product else values / 2)
    farthest = keys[:, -1].clone()
    at = torch.from_numpy(positions)
    is_own = task.bank.ids[at.clamp(min=0)] == task.query_ids[:, None]
    keys[(at < 0) | is_own] = torch.inf
    return Candidates(keys, at.to(torch.int32)), farthest


def _flat_index(
    rows: np.ndarray[Any, np.dtype[np.float32]], is_product: bool, *, on_gpu: bool
) -> tuple[Any, bool]:
    """The filled index, and whether it lies on GPUs.

    Raises:
        ValueError: faiss is not installed.
    """
    faiss = _import_faiss("faiss")
    kind = faiss.IndexFlatIP if is_product else faiss.IndexFlatL2
    flat: Any = kind(rows.shape[1])
    on_gpu = on_gpu and faiss.get_num_gpus() > 0
    if on_gpu:
        flat = faiss.index_cpu_to_all_gpus(flat)
    flat.add(rows)
    return flat, on_gpu


def _ivf_index(bank: Bank, nlist: int, seed: int) -> Any:
    """The trained and filled index."""
    faiss = _import_faiss("ivf")
    rows, is_product = bank.scaled.rows.numpy(), bank.frame.is_product
    metric = faiss.METRIC_INNER_PRODUCT if is_product else faiss.METRIC_L2
    flat = (faiss.IndexFlatIP if is_product else faiss.IndexFlatL2)(rows.shape[1])
    index = faiss.IndexIVFFlat(flat, rows.shape[1], nlist, metric)
    index.cp.seed = seed
    # faiss' own 25 rounds over 256 rows of each cell take twice as long (20,000 rows) and give
    # cells that are no better.
    index.cp.niter, index.cp.max_points_per_centroid = 10, 64
    if len(rows):
        # faiss otherwise writes a warning to stderr where a caller asks for more cells.
        index.cp.min_points_per_centroid = 1
        index.train(rows)
        index.add(rows)
    return index


def _import_faiss(backend: str) -> Any:
    try:
        import faiss
    except ModuleNotFoundError as missing:
        raise ValueError(
            f'backend "{backend}" needs faiss: install labelmesh[cpu] or labelmesh[gpu], or use '
            'backend="torch", which finds the exact neighbours'
        ) from missing
    return faiss
