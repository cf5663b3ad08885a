"""What is put between two updates, and which of it belongs to which update.

A `put` that reaches several shards may overtake an update on one and not on the other. So puts wait
in order of arrival; before an update every shard names those that it has (`seal`), and only puts
that have arrived at all their shards are taken. What is late on one shard waits on all others for
the next update: an update sees a put as a whole or not at all.

An update may fail when some shards have taken a put and others have not. So what was taken is still
named until all shards are known to have taken it, and the others take it with the next update.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
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
class Written:
    """A put that waits."""

    rows: Int64[Tensor, " m"]
    columns: Mapping[str, Tensor]
    stamp: Stamp | None


@dataclass
class Inbox:
    """Writes of one shard that no update has taken yet. For one thread at a time.

    Attributes:
        waiting: In order of arrival.
        taken: Puts that this shard has taken and others may not have.
        known: Messages that have come, in order of arrival.
        num_written, num_seen: Puts that have ever come, and before the last update had ended.
    """

    waiting: list[Written] = field(default_factory=list)
    taken: list[Stamp] = field(default_factory=list)
    known: dict[Stamp, None] = field(default_factory=dict)
    num_written: int = 0
    num_seen: int = 0
    _num_sealed: int = 0

    def write(
        self, rows: Int64[Tensor, " m"], columns: Mapping[str, Tensor], stamp: Stamp | None
    ) -> None:
        """Keep some rows of columns for the next update; `stamp` None: they go to one shard."""
        if self.knows(stamp):
            return
        self.note(stamp)
        self.waiting.append(Written(rows, columns, stamp))
        self.num_written += 1

    def knows(self, stamp: Stamp | None) -> bool:
        """Whether a message has come before; messages may be delivered twice."""
        return stamp is not None and stamp in self.known

    def note(self, stamp: Stamp | None) -> None:
        """Remember a message."""
        if stamp is not None:
            self.known[stamp] = None
            if len(self.known) > STAMPS_KEPT:
                del self.known[next(iter(self.known))]

    def seal(self) -> tuple[Stamp, ...]:
        """Name the puts that have arrived; later ones are not for this update."""
        self._num_sealed = len(self.waiting)
        return (*self.taken, *(w.stamp for w in self.waiting if w.stamp is not None))

    def choose(self, complete: Iterable[str] | None) -> list[int]:
        """Which of the waiting puts belong to the update.

        Args:
            complete: Puts that have arrived everywhere; None: all that is here.
        """
        if complete is None:
            return list(range(len(self.waiting)))
        known = set(complete)
        return [
            place
            for place, put in enumerate(self.waiting[: self._num_sealed])
            if put.stamp is None or put.stamp[0] in known
        ]

    def take(self, table: StagingTable, chosen: Sequence[int]) -> Bool[Tensor, " n"]:
        """Write some of the waiting puts into the table; which rows that were."""
        taken = [self.waiting[place] for place in chosen]
        gone = set(chosen)
        self.waiting = [put for place, put in enumerate(self.waiting) if place not in gone]
        self.taken += [put.stamp for put in taken if put.stamp is not None]
        self._num_sealed = 0
        written = torch.zeros(table.num_rows, dtype=torch.bool)
        for put in taken:
            for name, values in put.columns.items():
                table.write(name, put.rows, values)
            written[put.rows] = True
        return written

    def is_empty(self) -> bool:
        return not self.waiting

    def mark_seen(self) -> None:
        """An update has ended: what came during it waits for the next one, and that is known.

        All shards have taken what belonged to it.
        """
        self.num_seen = self.num_written
        self.taken = []

    def has_unseen(self) -> bool:
        """Whether anything was put after the last update had ended."""
        return self.num_seen < self.num_written


def complete_puts(stamps: Iterable[Iterable[Stamp]]) -> tuple[str, ...]:
    """Puts that all their shards have, from what each shard has sealed."""
    arrived = Counter(stamp for part in stamps for stamp in part)
    return tuple(sorted(name for (name, parts), count in arrived.items() if count == parts))
