"""What is put between two updates, and which of it belongs to which update.

A `put` that reaches several shards may overtake an update on one and not on the other. So puts wait
in order of arrival; before an update every shard names those that it has (`seal`), and only puts
that have arrived at all their shards are taken (`take`). What is late on one shard waits on all
others for the next update: an update sees a put as a whole or not at all.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from .table import StagingTable

# Puts that are remembered, so that a repeated message is recognised.
STAMPS_KEPT = 100_000
# Identity of a put, and how many shards it goes to.
Stamp = tuple[str, int]


@dataclass(frozen=True)
class _Written:
    rows: Int64[Tensor, " m"]
    columns: Mapping[str, Tensor]
    stamp: Stamp | None


@dataclass
class Inbox:
    """Writes of one shard that no update has taken yet. Safe for several threads."""

    _waiting: list[_Written] = field(default_factory=list)
    _known: dict[Stamp, None] = field(default_factory=dict)
    _num_sealed: int = 0
    _num_written: int = 0
    _num_seen: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __getstate__(self) -> dict[str, object]:
        return {k: v for k, v in self.__dict__.items() if k != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._lock = threading.Lock()

    def write(
        self, rows: Int64[Tensor, " m"], columns: Mapping[str, Tensor], stamp: Stamp | None
    ) -> None:
        """Keep some rows of columns for the next update; `stamp` None: they go to one shard.

        A message that is delivered twice is taken once.
        """
        with self._lock:
            if stamp is not None and stamp in self._known:
                return
            if stamp is not None:
                self._known[stamp] = None
                if len(self._known) > STAMPS_KEPT:
                    del self._known[next(iter(self._known))]
            self._waiting.append(_Written(rows, columns, stamp))
            self._num_written += 1

    def seal(self) -> tuple[Stamp, ...]:
        """Name the puts that have arrived; later ones are not for this update."""
        with self._lock:
            self._num_sealed = len(self._waiting)
            return tuple(w.stamp for w in self._waiting if w.stamp is not None)

    def take(self, table: StagingTable, complete: Iterable[str] | None) -> Bool[Tensor, " n"]:
        """Write what belongs to the update into the table; which rows that were.

        Args:
            complete: Puts that have arrived everywhere; None: all that is here.
        """
        known = None if complete is None else set(complete)
        with self._lock:
            sealed = self._waiting[: self._num_sealed] if known is not None else self._waiting
            taken = [w for w in sealed if known is None or w.stamp is None or w.stamp[0] in known]
            done = {id(w) for w in taken}
            self._waiting = [w for w in self._waiting if id(w) not in done]
            self._num_sealed = 0
        written = torch.zeros(table.num_rows, dtype=torch.bool)
        for put in taken:
            for name, values in put.columns.items():
                table.write(name, put.rows, values)
            written[put.rows] = True
        return written

    def is_empty(self) -> bool:
        with self._lock:
            return not self._waiting

    def mark_seen(self) -> None:
        """An update has ended: what came during it waits for the next one, and that is known."""
        with self._lock:
            self._num_seen = self._num_written

    def has_unseen(self) -> bool:
        """Whether anything was put after the last update had ended."""
        with self._lock:
            return self._num_seen < self._num_written


def complete_puts(stamps: Iterable[Iterable[Stamp]]) -> tuple[str, ...]:
    """Puts that all their shards have, from what each shard has sealed."""
    arrived = Counter(stamp for part in stamps for stamp in part)
    return tuple(sorted(name for (name, parts), count in arrived.items() if count == parts))
