"""Search with faiss, re-ranked so that it agrees with torch. The only importer of faiss.

faiss is imported on first use; its GPUs are used only after asking how many there are, because
faiss-gpu raises from GPU calls on machines without a driver.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from .kernels.knn import Found, Metric, knn_blocked
from .kernels.knn_cpu import PAD, Candidates, Search, rank_candidates
from .kernels.scaling import choose_frame, largest_entry

# Most neighbours that faiss' GPU search returns.
MAX_GPU_NEIGHBORS = 2048


class FaissIndex:
    """A flat faiss index over prepared rows; ids, order and distances are those of `TorchIndex`.

    faiss preselects k + pad rows by float32 arithmetic. They are ranked by canonical distance, and
    queries of which faiss' rounding may have left out a neighbour are searched again.
    """

    def __init__(
        self,
        rows: Float32[Tensor, "n D"],
        ids: Int64[Tensor, " n"],
        metric: Metric = "euclidean",
    ) -> None:
        self._rows, self._ids, self._metric = rows.cpu().contiguous(), ids.cpu(), metric
        self._largest = largest_entry(self._rows)
        self._frame = choose_frame(self._rows, self._largest, metric)
        self._bank = self._frame.apply(self._rows)
        self._flat, self._on_gpu = _flat_index(self._bank.rows.numpy(), self._frame.is_product)

    def search(
        self,
        queries: Float32[Tensor, "m D"],
        k: int,
        query_ids: Int64[Tensor, " m"] | None = None,
    ) -> Found:
        a = queries.detach().cpu().contiguous()
        own = torch.full(a.shape[:1], -1) if query_ids is None else query_ids.cpu()
        # One more than the list, because faiss may spend one on the query itself.
        size = min(k + PAD + 1, self._rows.shape[0])
        # The frame is the bank's; far larger queries would overflow in it.
        is_too_large = largest_entry(a) > 1e6 * self._largest
        if is_too_large or size == 0 or (self._on_gpu and size > MAX_GPU_NEIGHBORS):
            return knn_blocked(
                a, self._rows, k, query_ids=own, bank_ids=self._ids, metric=self._metric
            )
        scaled = self._frame.apply(a)
        values, positions = self._flat.search(scaled.rows.numpy(), size)
        keys = torch.from_numpy(-values if self._frame.is_product else values / 2)
        bounds = keys[:, -1].clone()
        if size == self._rows.shape[0]:
            bounds.fill_(torch.inf)
        at = torch.from_numpy(positions)
        keys[(at < 0) | (self._ids[at.clamp(min=0)] == own[:, None])] = torch.inf
        task = Search(a, self._rows, own, self._ids, self._frame.filter(scaled, self._bank), k)
        return rank_candidates(task, Candidates(keys, at.to(torch.int32)), bounds)


def _flat_index(rows: np.ndarray[Any, np.dtype[np.float32]], is_product: bool) -> tuple[Any, bool]:
    """The filled index, and whether it lies on GPUs.

    Raises:
        ValueError: faiss is not installed.
    """
    try:
        import faiss
    except ModuleNotFoundError as missing:
        raise ValueError(
            'backend "faiss" needs faiss: install labelmesh[cpu] or labelmesh[gpu], or use '
            'backend="torch", which gives the same neighbours'
        ) from missing
    flat = faiss.IndexFlatIP(rows.shape[1]) if is_product else faiss.IndexFlatL2(rows.shape[1])
    on_gpu = faiss.get_num_gpus() > 0
    if on_gpu:
        flat = faiss.index_cpu_to_all_gpus(flat)
    flat.add(rows)
    return flat, on_gpu
