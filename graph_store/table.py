"""Columns by node id, two rounds deep; a round shares with its neighbours what did not change.

A round is a plain mapping from column name to tensor that nobody writes to any more:

    features, probs, present                     as put
    neighbor_ids, similarity, distances, density the graph of these features
    pseudo.probs, pseudo.weight, extra.<name>    what `refresh` said, where it said anything
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from .store import StoreSpec

Columns = Mapping[str, Tensor]
EXTRA = "extra."
ROUNDS_KEPT = 2


class StagingTable:
    """The columns that `put` writes. `freeze` gives them away; the next write copies them first.

    Not safe for several writers at once; frozen columns may be read at any time.
    """

    def __init__(self, spec: StoreSpec, num_rows: int) -> None:
        dtype = torch.float16 if spec.dtype == "float16" else torch.float32
        self._columns = {
            "features": torch.zeros(num_rows, spec.dim, dtype=dtype),
            "probs": torch.zeros(num_rows, spec.num_classes),
            "present": torch.zeros(num_rows, dtype=torch.bool),
        }
        self._frozen: set[str] = set()
        self.num_rows = num_rows

    def write(self, name: str, rows: Int64[Tensor, " m"], values: Shaped[Tensor, "m ..."]) -> None:
        """Overwrite some rows of a column."""
        if name in self._frozen:
            self._columns[name] = self._columns[name].clone()
            self._frozen.discard(name)
        column = self._columns[name]
        column[rows] = values.to(column.dtype)

    def peek(self, name: str) -> Tensor:
        """A column as it is now, to be read at once."""
        return self._columns[name]

    def freeze(self) -> dict[str, Tensor]:
        """The columns as they are now; they do not change any more."""
        self._frozen = set(self._columns)
        return dict(self._columns)

    def load(self, columns: Columns) -> None:
        """Take over columns that were frozen elsewhere."""
        self._columns = {name: columns[name] for name in self._columns}
        self._frozen = set(self._columns)


class Rounds:
    """The published rounds. Replaced as a whole at each change, so readers need no lock.

    Args:
        attempts: Which of several attempts at a round was published; "" where that is not known.
    """

    def __init__(
        self,
        rounds: Mapping[int, Columns] | None = None,
        attempts: Mapping[int, str] | None = None,
    ) -> None:
        self._rounds: Mapping[int, Columns] = dict(rounds or {})
        self._attempts: Mapping[int, str] = dict(attempts or {})

    def numbers(self) -> tuple[int, ...]:
        return tuple(sorted(self._rounds))

    def contents(self) -> tuple[Mapping[int, Columns], Mapping[int, str]]:
        """What another `Rounds` can be made of."""
        return self._rounds, self._attempts

    def attempt(self, number: int) -> str:
        return self._attempts.get(number, "")

    def publish(self, number: int, columns: Columns, attempt: str = "") -> None:
        """Add a round, keep the one before it, drop all others.

        Rounds after `number` go as well: a run that goes on from an earlier checkpoint publishes
        its rounds again, and what came later belongs to a past that it does not share.
        """
        earlier = [q for q in self.numbers() if q < number][-(ROUNDS_KEPT - 1) :]
        self._attempts = {**{q: self.attempt(q) for q in earlier}, number: attempt}
        self._rounds = {**{q: self._rounds[q] for q in earlier}, number: columns}

    def get(self, number: int) -> Columns:
        """Raises ValueError where the round is not kept."""
        rounds = self._rounds
        if number not in rounds:
            raise ValueError(
                f"round {number} cannot be read; published are {sorted(rounds)} (the last "
                f"{ROUNDS_KEPT} are kept)"
            )
        return rounds[number]
