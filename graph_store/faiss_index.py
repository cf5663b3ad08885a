"""Search with faiss, re-ranked so that it agrees with torch. The only importer of faiss.

faiss is imported on first use. Its GPUs are used only for rows that lie on one, and only after
asking how many there are: on a machine without a driver, GPU calls of faiss-gpu abort the process,
which cannot be caught, so this question must not become a `try`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from .kernels.knn import Found, Metric, make_bank, make_search, search_bank
from .kernels.knn_cpu import PAD, Candidates, rank_candidates

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
        values, positions = self._flat.search(task.filter.queries.rows.numpy(), size)
        keys = torch.from_numpy(-values if task.filter.frame.is_product else values / 2)
        bounds = keys[:, -1].clone() if size < num_rows else torch.full_like(keys[:, 0], torch.inf)
        at = torch.from_numpy(positions)
        is_own = self._bank.ids[at.clamp(min=0)] == task.query_ids[:, None]
        keys[(at < 0) | is_own] = torch.inf
        return rank_candidates(task, Candidates(keys, at.to(torch.int32)), bounds)


def _flat_index(
    rows: np.ndarray[Any, np.dtype[np.float32]], is_product: bool, *, on_gpu: bool
) -> tuple[Any, bool]:
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
    kind = faiss.IndexFlatIP if is_product else faiss.IndexFlatL2
    flat: Any = kind(rows.shape[1])
    on_gpu = on_gpu and faiss.get_num_gpus() > 0
    if on_gpu:
        flat = faiss.index_cpu_to_all_gpus(flat)
    flat.add(rows)
    return flat, on_gpu
