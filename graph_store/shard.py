"""State and operations of one shard: its rows of every column, and its part in a round. No Ray.

The life of a round: `put` writes the staging table; `update_knn` freezes it and adds the graph
(then it is "staged"); `solve` runs a function over the staged graph and holds the result back;
`publish` makes it readable. `update_knn` and `solve` are collective over the shards. Reads may run
in other threads at any time: all that they see is never written to again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from .inbox import Stamp
from .index import NeighborIndex, make_index
from .journal import Journal
from .journal_frames import Record
from .kernels.cosine_zeros import add_zero_rows
from .kernels.rows import prepare_rows
from .local_view import LocalGraphView
from .partition import Partition, take_rows
from .peers import Peers
from .shard_graph import ShardGraph
from .shard_state import ShardState
from .sharded_view import ShardedGraphView, ShardGroup
from .solution import node_state, solution_columns, summarize
from .store import KnnReport, RefreshFn, StoreSpec, UndecidedRoundError
from .table import EXTRA, Columns

RoundIndex = tuple[NeighborIndex, Tensor, Tensor]
# Not an attribute: a store can be copied, a lock cannot. One index is built at a time.
_INDEX_LOCK = threading.Lock()


class Shard:
    """The rows `partition.span(rank)` of a store. All values must have been checked before."""

    def __init__(self, spec: StoreSpec, partition: Partition, rank: int = 0) -> None:
        self.spec = spec
        self.partition = partition
        self._start, stop = partition.span(rank)
        self.node_ids = torch.arange(self._start, stop)
        self._rank = rank
        self._group: ShardGroup | None = None
        self._peers = Peers(partition, rank)
        self._device = torch.device(spec.device)
        self._state = ShardState(spec, len(self.node_ids))
        self._journal: Journal | None = None
        self._graph = ShardGraph(spec)
        self._num_updates = 0  # that `_graph` has seen
        self._indices: list[tuple[Tensor, RoundIndex]] = []

    def join(self, group: ShardGroup) -> None:
        """Talk to the other shards through `group` from now on, also when it has been left.

        Collective. Where not all shards have followed the same updates, they begin anew.
        """
        self._group = group
        self._peers = Peers(self.partition, self._rank, group)
        last = self._peers.largest(float(self._num_updates))
        if self._peers.any(self._num_updates != last):
            self._forget_graph()

    def replay(self, record: Record) -> None:
        """Let happen once more what a log says; nothing is logged."""
        self._state.apply(record)

    def keep_log(self, journal: Journal) -> None:
        """Write everything there from now on, before it has an effect."""
        self._journal = journal

    # Writes

    def put(
        self,
        node_ids: Int64[Tensor, " m"],
        features: Float[Tensor, "m D"],
        probs: Float[Tensor, "m C"] | None,
        stamp: Stamp | None = None,
    ) -> None:
        """See `GraphStore.put`; without `probs` the nodes keep those that they have.

        `stamp` tells the parts of one put from those of others where it goes to several shards.
        """
        columns = {"features": features, "present": torch.ones(len(node_ids), dtype=torch.bool)}
        if probs is not None:
            columns["probs"] = probs
        self._once("put", stamp, {"rows": node_ids - self._start, **columns})

    def remove(self, node_ids: Int64[Tensor, " m"], stamp: Stamp | None = None) -> None:
        """See `GraphStore.remove`."""
        gone = torch.zeros(len(node_ids), dtype=torch.bool)
        self._once("put", stamp, {"rows": node_ids - self._start, "present": gone})

    def put_labels(
        self,
        node_ids: Int64[Tensor, " m"],
        labels: Int64[Tensor, " m"],
        stamp: Stamp | None = None,
    ) -> None:
        """See `GraphStore.put_labels`."""
        self._once("labels", stamp, {"rows": node_ids - self._start, "labels": labels})

    def seal(self) -> tuple[Stamp, ...]:
        """What has been put by now and may belong to the next `update_knn`; it is on disk."""
        with self._state.lock:
            if self._journal is not None:
                self._journal.sync()
            return self._state.inbox.seal()

    def absorb(self, complete: Sequence[str] | None = None) -> None:
        """Write what has been put into the table; see `update_knn`."""
        with self._state.lock:
            chosen = self._state.inbox.choose(complete)
            if not chosen:
                return
            written = self._happen(Record("absorbed", {"chosen": chosen}), sync=True)
        assert written is not None
        if bool(written.any()):
            self._graph.write(self._state.table.peek("features"), written)

    def update_knn(self, complete: Sequence[str] | None = None) -> KnnReport:
        """See `GraphStore.update_knn`; the same report on every shard. Collective.

        Args:
            complete: Puts that have reached all their shards; None in one process.

        Raises:
            ValueError: No shard has any features.
        """
        began = time.perf_counter()
        self.absorb(complete)
        state = self._state
        if not self._peers.any(state.is_old):  # all shards have absorbed
            if state.inbox.has_unseen() or state.inbox.taken:
                self._happen(Record("seen"))
            return KnnReport(0, 0, True, 1.0, time.perf_counter() - began)
        columns = state.table.freeze()
        present = columns["present"]
        if not self._peers.total(int(present.sum())):
            raise ValueError("no features have been put; call put before update_knn")
        if not state.is_old:
            # If it dies while others stage the update, this shard must not look up to date.
            self._happen(Record("old"), sync=True)
        graph, report = self._update_graph(columns["features"], present)
        changed = present
        if state.staged is not None:
            moved = graph["neighbor_ids"] != state.staged["neighbor_ids"]
            changed = present & moved.any(1)
        # The last collective: a shard that dies before it leaves all with the lists they had.
        num_changed = self._peers.total(int(changed.sum()))
        self._happen(Record("staged", {}, graph), sync=True)
        self._num_updates += 1
        self._tidy_log()
        return replace(report, changed=num_changed, seconds=time.perf_counter() - began)

    def solve(self, fn: RefreshFn | None, round: int, attempt: str = "") -> Mapping[str, float]:
        """Run `fn` over the staged graph and hold the result back for `publish`. Collective.

        Args:
            attempt: Tells this from other tries at the same round.

        Returns:
            The numbers of `GraphStore.refresh` but "seconds_publish", the same on every shard.

        Raises:
            ValueError: The graph is not up to date, or `fn` returned what is no pseudo-label.
        """
        kept = self._state
        if self._peers.any(kept.staged is None or kept.is_old or kept.inbox.has_unseen()):
            raise ValueError(
                "the graph is older than the features; call update_knn after the last put and "
                "before refresh"
            )
        assert kept.staged is not None
        began = time.perf_counter()
        view = self._view(kept.staged)
        earlier = [number for number in kept.rounds.numbers() if number < round]
        last = kept.rounds.get(earlier[-1]) if earlier else None
        state = node_state(kept.staged, kept.labels, self._device, last)
        found = None if fn is None else fn(view, state)
        columns = solution_columns(self.spec, state, found)
        numbers = summarize(state, columns, view.all_sum)
        numbers.update({} if found is None else found.numbers)
        seconds = torch.tensor([time.perf_counter() - began], dtype=torch.float64)
        numbers["seconds_solve"] = float(view.all_max(seconds.to(self._device)))
        self._happen(Record("solved", {"round": round, "attempt": attempt}, columns), sync=True)
        return numbers

    def publish(self, round: int, attempt: str = "") -> None:
        """Make the held result readable; nothing where that has been done."""
        with self._state.lock:
            solved = self._state.solved
            if attempt and self._state.rounds.attempt(round) == attempt:
                return
            assert solved is not None, "solve comes before publish"
            assert solved[:2] == (round, attempt), f"{solved[:2]} was solved, not {round, attempt}"
            self._happen(Record("published", {"round": round, "attempt": attempt}), sync=True)
        self._tidy_log()

    def decided(self) -> tuple[tuple[int, str], ...]:
        """The published rounds and which attempts they are; what shard 0 says is decided."""
        rounds = self._state.rounds
        return tuple((number, rounds.attempt(number)) for number in rounds.numbers())

    def settle(self, decided: Sequence[tuple[int, str]]) -> None:
        """Publish the held result if it is decided: who should have told so may have died."""
        with self._state.lock:
            solved = self._state.solved
            if solved is not None and solved.attempt and solved[:2] in decided:
                self.publish(*solved[:2])

    # Reads

    def published(self) -> tuple[int, ...]:
        return self._state.rounds.numbers()

    def sizes(self) -> dict[str, Any]:
        """Rows that are present, bytes of all columns, puts that wait, rounds."""
        return self._state.sizes()

    def rows(
        self, node_ids: Int64[Tensor, " m"], names: Sequence[str], round: int | None
    ) -> dict[str, Tensor]:
        """Rows of own nodes from the named columns; an `extra` column goes by its bare name.

        Raises:
            ValueError: No such round or column.
        """
        local = node_ids - self._start
        if tuple(names) == ("labels",):  # labels belong to no round
            return {"labels": take_rows(self._state.labels, local)}
        columns: Columns = {**self._columns(round), "labels": self._state.labels}
        found = {}
        for name in names:
            key = name if name in columns else EXTRA + name
            if key not in columns:
                known = sorted(c.removeprefix(EXTRA) for c in columns if "pseudo." not in c)
                raise ValueError(f"no column {name!r}; there are {', '.join(known)}")
            found[name] = take_rows(columns[key], local)
        return found

    def pseudo_rows(self, node_ids: Int64[Tensor, " m"], round: int | None) -> dict[str, Tensor]:
        """Rows of all columns that `refresh` made; empty where it made none."""
        local = node_ids - self._start
        made = {k: c for k, c in self._columns(round).items() if k.startswith(("pseudo.", EXTRA))}
        return {name: take_rows(column, local) for name, column in made.items()}

    def search(
        self, features: Float[Tensor, "m D"], k: int, round: int | None
    ) -> tuple[Int64[Tensor, "m k"], Float[Tensor, "m k"]]:
        """The k own nodes that are nearest to any features, by (canonical distance, id)."""
        queries = prepare_rows(features.to(self._device), self.spec.metric)
        searched = self._graph.has_direction(queries)
        index, zero_ids, all_ids = self._round_index(self._columns(round))
        found = index.search(queries[searched], k)
        nobody = torch.full((len(queries),), -1, device=queries.device)
        ids, distances = add_zero_rows(found, searched, nobody, zero_ids, all_ids, k)
        return ids.cpu(), distances.cpu()

    # Snapshots

    def contents(self) -> dict[str, Columns]:
        """See `ShardState.contents`."""
        return self._state.contents()

    def load(self, parts: Mapping[str, Columns]) -> None:
        """Take over the own rows of what `contents` gave; what was here before is forgotten."""
        state = ShardState(self.spec, len(self.node_ids))
        state.load(parts)
        with self._state.lock:
            if self._journal is not None:
                self._journal.restart(state.whole())
            self._state = state
        self._forget_graph()

    # Helpers

    def _columns(self, round: int | None) -> Columns:
        """A published round, or what is staged (None)."""
        state = self._state
        if round is not None:
            solved = state.solved  # looked at first: it becomes a round
            if round not in state.rounds.numbers() and solved is not None and solved[0] == round:
                raise UndecidedRoundError(
                    f"round {round} is not published yet; published are "
                    f"{list(state.rounds.numbers())}"
                )
            return state.rounds.get(round)
        if state.staged is None:
            raise ValueError("nothing can be read yet; call put and update_knn first")
        return state.staged

    def _once(self, kind: str, stamp: Stamp | None, tensors: Mapping[str, Tensor]) -> None:
        """What a message says, the first time that it comes."""
        with self._state.lock:
            if not self._state.inbox.knows(stamp):
                self._happen(Record(kind, {"stamp": stamp}, tensors))

    def _happen(self, record: Record, *, sync: bool = False) -> Bool[Tensor, " n"] | None:
        """Log a record, then let it have its effect."""
        with self._state.lock:
            if self._journal is not None:
                self._journal.append(record, sync=sync)
            return self._state.apply(record)

    def _tidy_log(self) -> None:
        if self._journal is not None:
            with self._state.lock:
                self._journal.compact(self._state.whole)

    def _update_graph(
        self, features: Float[Tensor, "n D"], present: Bool[Tensor, " n"]
    ) -> tuple[dict[str, Tensor], KnnReport]:
        try:
            return self._graph.update(self._peers, features, present, self._state.lists)
        except BaseException:
            self._forget_graph()  # it may be halfway
            raise

    def _forget_graph(self) -> None:
        self._graph, self._num_updates = ShardGraph(self.spec), 0

    def _view(self, columns: Columns) -> LocalGraphView | ShardedGraphView:
        names = ("neighbor_ids", "similarity", "distances")
        ids, similarity, distances = (columns[name].to(self._device) for name in names)
        metric = self.spec.metric
        if self._group is None:
            return LocalGraphView(ids, similarity, distances, metric)
        return ShardedGraphView(self._group, self.partition, ids, similarity, distances, metric)

    def _round_index(self, columns: Columns) -> RoundIndex:
        """Index, ids of the zero rows and of all rows of a round; kept as long as the round."""
        features = columns["features"]
        with _INDEX_LOCK:
            published = self._state.rounds
            rounds = [published.get(q) for q in published.numbers()]
            kept = [c["features"] for c in [*rounds, self._state.staged or {}, columns] if c]
            self._indices = [e for e in self._indices if any(e[0] is column for column in kept)]
            for known, index in self._indices:
                if known is features:
                    return index
            present = columns["present"]
            rows = prepare_rows(features[present].to(self._device), self.spec.metric)
            ids = self.node_ids[present].to(self._device)
            searched = self._graph.has_direction(rows)
            made = make_index(self.spec.backend, rows[searched], ids[searched])
            index = (made, ids[~searched], ids)
            self._indices.append((features, index))
            return index
