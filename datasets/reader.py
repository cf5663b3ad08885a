"""From node ids to batches: cached, prefetched, in exactly the order asked for.

A reader never loads a whole data set: it fetches the samples that it is asked for, by byte range,
and keeps decoded ones up to a number of bytes. Which ids it is asked for is `sampler.py`'s matter,
so a run that stops at any step goes on with the next one (`epoch(plan, start_step=...)`).
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from .cache import SampleCache
from .manifest import load_index
from .sampler import Plan
from .samples import open_source
from .schema import DatasetInfo, NodeBatch
from .sharding import micro_batches_of


class Reader:
    """Reads the nodes of a run.

    Args:
        uri: The data set, at any fsspec URI.
        rows: Manifest row of each node 0..n-1.
        labels: Given labels of the nodes, -1 = unlabeled; they are handed on in the batches.
        cache_bytes: Memory for decoded samples.
        max_broken_share: Largest share of the nodes that may be unreadable.
        verify_sha: Compare each sample with the manifest's sha256 when it is fetched.
        num_threads: For decoding large images.

    Attributes:
        info: The data set's description.
        groups: Number of the shard that each node lies in; for `make_plan(groups=...)`.
        broken: Node id -> reason, of the nodes found unreadable so far.

    Raises:
        ValueError: No data set at `uri`, or rows that it does not have.
    """

    def __init__(
        self,
        uri: str,
        rows: Int64[Tensor, " n"],
        labels: Int64[Tensor, " n"],
        *,
        cache_bytes: int = 512 << 20,
        max_broken_share: float = 0.01,
        verify_sha: bool = False,
        num_threads: int = 2,
    ) -> None:
        self._index = load_index(uri)
        self._rows, self._labels = rows.numpy(), labels
        wrong = (rows < 0) | (rows >= len(self._index))
        if wrong.any():
            raise ValueError(
                f"{uri}: row {int(rows[wrong][0])}, but the manifest has {len(self._index)}"
            )
        self.info: DatasetInfo = self._index.info
        self.groups = torch.from_numpy(self._index.shard_ids[self._rows])
        self.broken: dict[int, str] = {}
        self._is_broken = np.zeros(len(rows), bool)
        self._max_broken = max_broken_share * len(rows)
        self._max_broken_share = max_broken_share
        self._lock = threading.Lock()
        self._source = open_source(self._index, verify_sha=verify_sha, num_threads=num_threads)
        self._cache = SampleCache(len(rows), self.info.shape, self._source.dtype, cache_bytes)

    def __len__(self) -> int:
        return len(self._rows)

    def read(self, node_ids: Int64[Tensor, " b"]) -> NodeBatch:
        """The inputs and given labels of some nodes, in this order; unreadable nodes are left out.

        Raises:
            ValueError: No such node, or too many unreadable ones; the first few are named.
            OSError: The file system failed, for example the network.
        """
        wrong = (node_ids < 0) | (node_ids >= len(self))
        if wrong.any():
            raise ValueError(f"node {int(node_ids[wrong][0])}: ids are 0..{len(self) - 1}")
        ids = node_ids.numpy()
        ids = ids[~self._is_broken[ids]]
        values = np.empty((len(ids), *self.info.shape), self._source.dtype)
        missing = self._cache.lookup(ids, values)
        if missing.any():
            wanted, back = np.unique(ids[missing], return_inverse=True)
            fetched = self._source.fetch(self._rows[wanted])
            self._note_broken(wanted, fetched.broken)
            good = ~self._is_broken[wanted]
            self._cache.insert(wanted[good], fetched.values[good])
            values[missing] = fetched.values[back]
            keep = ~self._is_broken[ids]
            ids, values = ids[keep], values[keep]
        found = torch.from_numpy(ids)
        return NodeBatch(found, torch.from_numpy(values), self._labels[found])

    def stream(
        self, batches: Iterable[Tensor], *, prefetch: int = 2
    ) -> Generator[NodeBatch, None, None]:
        """Read batch after batch of node ids, up to `prefetch` ahead in a thread of its own.

        Closing the iterator drops what was read ahead and ends the thread.
        """
        pending: deque[Future[NodeBatch]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="labelmesh-reader") as pool:
            try:
                for node_ids in batches:
                    pending.append(pool.submit(self.read, node_ids))
                    if len(pending) > prefetch:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()

    def epoch(
        self,
        plan: Plan,
        *,
        rank: int = 0,
        num_ranks: int = 1,
        start_step: int = 0,
        prefetch: int = 2,
    ) -> Generator[tuple[int, int, NodeBatch], None, None]:
        """The micro-batches of one rank: (step, index of the micro-batch, its nodes).

        With `start_step` it goes on exactly where a run stopped. A micro-batch all of whose nodes
        are unreadable comes as an empty batch, so that ranks stay in step.
        """
        indices = micro_batches_of(plan.micro_batches, rank, num_ranks)
        places = [(step, i) for step in range(start_step, plan.num_steps) for i in indices]
        batches = self.stream((plan.micro_batch(*place) for place in places), prefetch=prefetch)
        with closing(batches):
            for (step, index), batch in zip(places, batches):
                yield step, index, batch

    def _note_broken(self, node_ids: np.ndarray, broken: dict[int, str]) -> None:
        if not broken:
            return
        with self._lock:
            for position, reason in broken.items():
                node = int(node_ids[position])
                key = self._index.keys[int(self._rows[node])].as_py()
                self.broken[node] = f"sample {key!r} {reason}"
            self._is_broken[list(self.broken)] = True
            if len(self.broken) > self._max_broken:
                named = "; ".join(list(self.broken.values())[:3])
                raise ValueError(
                    f"{self._index.uri}: {len(self.broken)} of {len(self)} samples cannot be read, "
                    f"more than max_broken_share = {self._max_broken_share}: {named}"
                )
