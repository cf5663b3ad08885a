"""When a refresh round is due and which round can be read: pure arithmetic on epochs.

Round r is computed before epoch r * every_epochs; one more round after the last epoch leaves the
store with the final network's features, for prediction and for the labels that the run delivers.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RoundSchedule:
    every_epochs: int
    epochs: int

    def due(self, epoch: int) -> int | None:
        """Number of the round to compute before `epoch`; None if there is none."""
        return epoch // self.every_epochs if epoch % self.every_epochs == 0 else None

    def readable(self, epoch: int) -> int:
        """Number of the round that epoch `epoch` trains on."""
        return epoch // self.every_epochs

    @property
    def final(self) -> int:
        """Number of the round after the last epoch."""
        return self.readable(self.epochs - 1) + 1
