"""What a shard holds, as the sum of what has happened to it. Pure.

Every change is a record, whether it is made for the first time or read from a log: so a log that is
replayed gives the same state, bit for bit. Kinds of records, with their fields and tensors:

    put        stamp            rows, present, features, probs; the last two where they were given
    labels     stamp            rows, labels
    absorbed   chosen           the places of waiting puts that went into the table
    old                         an update has begun that may change the neighbours of own rows
    staged                      the columns that the update made
    seen                        an update has ended that had nothing to do
    solved     round, attempt   the columns that a method made
    published  round, attempt
    whole      ...              all of the state; the first record of a log that is not empty
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from .inbox import Inbox, Stamp, Written
from .journal_frames import Record
from .shard_graph import OldLists
from .store import StoreSpec
from .table import Columns, Rounds, StagingTable

_KINDS = frozenset(
    {"put", "labels", "absorbed", "old", "staged", "seen", "solved", "published", "whole"}
)
_TABLE = ("features", "probs", "present")


class Solved(NamedTuple):
    """A round that is not published yet."""

    round: int
    attempt: str
    columns: Columns


class ShardState:
    """The columns of `num_rows` nodes, the puts that wait, and the rounds.

    `lock` is held while a record is applied, and by those who first look whether it applies.

    Attributes:
        is_old: The table has changed since the graph was made.
        staged: The table and the graph of the last update.
        lists: Its neighbours and what was written since.
        rounds: Replaced at every change, so readers need no lock.
    """

    def __init__(self, spec: StoreSpec, num_rows: int) -> None:
        self._spec, self._num_rows = spec, num_rows
        self.lock = threading.RLock()
        self.labels: Int64[Tensor, " n"] = torch.full((num_rows,), -1)
        self.table = StagingTable(spec, num_rows)
        self.inbox = Inbox()
        self.is_old = True
        self.staged: Columns | None = None
        self.lists: OldLists | None = None
        self.solved: Solved | None = None
        self.rounds = Rounds()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.lock = threading.RLock()

    def apply(self, record: Record) -> Bool[Tensor, " n"] | None:
        """Let a record have its effect; "absorbed" gives the rows that were written.

        Raises:
            ValueError: It is of another kind.
        """
        if record.kind not in _KINDS:
            raise ValueError(f"a record of kind {record.kind!r}, which no shard writes")
        with self.lock:
            written: Bool[Tensor, " n"] | None = getattr(self, f"_{record.kind}")(
                record.fields, record.tensors
            )
            return written

    # One method for each kind of record

    def _put(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        columns = {name: tensors[name] for name in _TABLE if name in tensors}
        self.inbox.write(tensors["rows"], columns, _stamp(fields["stamp"]))

    def _labels(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        self.inbox.note(_stamp(fields["stamp"]))
        changed = self.labels.clone()
        changed[tensors["rows"]] = tensors["labels"]
        self.labels = changed

    def _absorbed(self, fields: Mapping[str, Any], _: object) -> Bool[Tensor, " n"]:
        written = self.inbox.take(self.table, fields["chosen"])
        if bool(written.any()):
            self.is_old = True
            if self.lists is not None:
                self.lists = OldLists(self.lists.neighbor_ids, self.lists.moved | written)
        return written

    def _old(self, *_: object) -> None:
        self.is_old = True

    def _staged(self, _: object, tensors: Mapping[str, Tensor]) -> None:
        self.staged = {**self.table.freeze(), **tensors}
        nothing = torch.zeros(self._num_rows, dtype=torch.bool)
        self.lists = OldLists(tensors["neighbor_ids"], nothing)
        self.is_old = False
        self.inbox.mark_seen()

    def _seen(self, *_: object) -> None:
        self.inbox.mark_seen()

    def _solved(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        assert self.staged is not None, "a round is solved over what is staged"
        columns = {**self.staged, **tensors}
        self.solved = Solved(fields["round"], fields["attempt"], columns)

    def _published(self, *_: object) -> None:
        assert self.solved is not None, "a round is solved before it is published"
        number, attempt, columns = self.solved
        rounds = Rounds(*self.rounds.contents())
        rounds.publish(number, columns, attempt)
        self.rounds, self.solved = rounds, None

    def _whole(self, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        parts = {
            part: {column: tensors[name] for column, name in names.items()}
            for part, names in fields["parts"].items()
        }
        self.load(parts, fields["attempts"])
        self.is_old = fields["is_old"]
        if "solved" in parts:
            number, attempt = fields["solved"]
            self.solved = Solved(number, attempt, parts["solved"])
        self.inbox = Inbox(
            waiting=[
                _waiting(parts[f"put.{place}"], stamp)
                for place, stamp in enumerate(fields["waiting"])
            ],
            taken=[(name, count) for name, count in fields["taken"]],
            known={(name, count): None for name, count in fields["known"]},
            num_written=fields["num_written"],
            num_seen=fields["num_seen"],
        )

    # The whole of it

    def load(self, parts: Mapping[str, Columns], attempts: Mapping[str, str] | None = None) -> None:
        """Take over what `contents` gave; nothing waits, and nothing is held back."""
        with self.lock:
            self.labels = parts["labels"]["labels"]
            self.table.load(parts["table"])
            self.inbox = Inbox()
            self.staged = parts.get("staged")
            self.is_old = self.staged is None
            self.lists = None
            if "lists" in parts:
                self.lists = OldLists(parts["lists"]["neighbor_ids"], parts["lists"]["moved"])
            self.solved = None
            rounds = {int(name[6:]): c for name, c in parts.items() if name.startswith("round.")}
            tried = {int(number): attempt for number, attempt in (attempts or {}).items()}
            self.rounds = Rounds(rounds, tried)

    def contents(self) -> dict[str, Columns]:
        """What belongs into a snapshot, by part; of what was put lately, what was absorbed.

        "labels", "table", "round.<number>"; "staged" where it is up to date; "lists" where
        refinement starts from them.
        """
        parts = self._parts(self.table.freeze())
        if self.is_old:
            parts.pop("staged", None)
        if self._spec.update != "refine":
            parts.pop("lists", None)
        return parts

    def whole(self) -> Record:
        """All of the state as one record, which shares its memory: write it before it changes."""
        with self.lock:
            parts = self._parts({name: self.table.peek(name) for name in _TABLE})
            if self.solved is not None:
                parts["solved"] = self.solved.columns
            for place, put in enumerate(self.inbox.waiting):
                parts[f"put.{place}"] = {"rows": put.rows, **put.columns}
            names, tensors = _distinct(parts)
            fields = {
                "parts": names,
                "attempts": {str(q): self.rounds.attempt(q) for q in self.rounds.numbers()},
                "is_old": self.is_old,
                "solved": None if self.solved is None else self.solved[:2],
                "waiting": [put.stamp for put in self.inbox.waiting],
                "taken": self.inbox.taken,
                "known": list(self.inbox.known),
                "num_written": self.inbox.num_written,
                "num_seen": self.inbox.num_seen,
            }
            return Record("whole", fields, tensors)

    def _parts(self, table: Columns) -> dict[str, Columns]:
        parts: dict[str, Columns] = {"labels": {"labels": self.labels}, "table": table}
        if self.staged is not None:
            parts["staged"] = self.staged
        if self.lists is not None:
            parts["lists"] = self.lists._asdict()
        return parts | {f"round.{q}": self.rounds.get(q) for q in self.rounds.numbers()}

    def sizes(self) -> dict[str, Any]:
        """Rows that are present, bytes of all columns, puts that wait, and rounds."""
        rounds, waiting = self.rounds, list(self.inbox.waiting)
        columns: list[Columns] = [{name: self.table.peek(name) for name in _TABLE}]
        columns += [put.columns for put in waiting]
        columns += [rounds.get(number) for number in rounds.numbers()]
        columns += [self.staged or {}, {"labels": self.labels}]
        distinct = {id(t): t.nbytes for part in columns for t in part.values()}
        return {
            "num_rows": int(self.table.peek("present").sum()),
            "num_bytes": sum(distinct.values()),
            "num_waiting": len(waiting),
            "rounds": rounds.numbers(),
        }


def _waiting(columns: Columns, stamp: Any) -> Written:
    rows = columns["rows"]
    return Written(rows, {n: c for n, c in columns.items() if n != "rows"}, _stamp(stamp))


def _stamp(value: Any) -> Stamp | None:
    """JSON has lists where Python has tuples."""
    return None if value is None else (value[0], value[1])


def _distinct(
    parts: Mapping[str, Columns],
) -> tuple[dict[str, dict[str, str]], dict[str, Tensor]]:
    """The name of every column's tensor, and the tensors; rounds share what did not change."""
    names: dict[str, dict[str, str]] = {}
    tensors: dict[str, Tensor] = {}
    by_identity: dict[int, str] = {}
    for part, columns in parts.items():
        names[part] = {}
        for column, values in columns.items():
            name = by_identity.setdefault(id(values), f"{part}/{column}")
            names[part][column] = name
            tensors[name] = values
    return names, tensors
