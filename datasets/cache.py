"""Decoded samples in memory, bounded in bytes; hits cost one indexing operation per batch."""

from __future__ import annotations

import threading

import numpy as np

# Candidates per sample that must go: with 4, the ones that are dropped were nearly always unused
# for longest, without ordering the whole cache at every batch.
_CANDIDATES = 4


class SampleCache:
    """A slot per sample until the bytes are used up; then those not used for longest give way.

    With room for every node nothing is ever dropped. Memory is touched only as slots fill.
    Safe to use from several threads.
    """

    def __init__(
        self, num_nodes: int, shape: tuple[int, ...], dtype: type[np.generic], max_bytes: int
    ) -> None:
        sample_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        num_slots = min(num_nodes, max_bytes // sample_bytes)
        self._values = np.empty((num_slots, *shape), dtype)
        self._slot_of = np.full(num_nodes, -1)
        self._node_of = np.full(num_slots, -1)
        self._last_used = np.zeros(num_slots, np.int64)
        self._num_filled = self._hand = self._clock = 0
        self._lock = threading.Lock()

    def lookup(self, ids: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Copy what is here into the rows of `out`; True where a node is missing."""
        with self._lock:
            slots = self._slot_of[ids]
            hit = slots >= 0
            self._clock += 1
            self._last_used[slots[hit]] = self._clock
            if hit.all():
                np.take(self._values, slots, axis=0, out=out, mode="clip")
            else:
                out[hit] = self._values[slots[hit]]
        missing: np.ndarray = ~hit
        return missing

    def insert(self, ids: np.ndarray, values: np.ndarray) -> None:
        """Keep distinct nodes, as many as there is room for."""
        with self._lock:
            absent = np.flatnonzero(self._slot_of[ids] < 0)[: len(self._node_of)]
            slots = self._free(len(absent))
            old = self._node_of[slots]
            self._slot_of[old[old >= 0]] = -1
            self._clock += 1
            self._node_of[slots] = ids[absent]
            self._slot_of[ids[absent]] = slots
            self._last_used[slots] = self._clock
            self._values[slots] = values[absent]

    def _free(self, count: int) -> np.ndarray:
        num_slots = len(self._node_of)
        fresh = np.arange(self._num_filled, min(self._num_filled + count, num_slots))
        self._num_filled += len(fresh)
        rest = count - len(fresh)
        if not rest:
            return fresh
        # A window that moves round the slots; those just taken are not candidates.
        window = (self._hand + np.arange(min(_CANDIDATES * rest, num_slots))) % num_slots
        self._hand = int(window[-1] + 1) % num_slots
        window = np.setdiff1d(window, fresh)
        oldest = np.argsort(self._last_used[window], kind="stable")[:rest]
        return np.concatenate([fresh, window[oldest]])
