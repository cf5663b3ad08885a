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

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .inbox import Inbox, Stamp
from .index import NeighborIndex, make_index
from .kernels.cosine_zeros import add_zero_rows
from .kernels.rows import prepare_rows
from .local_view import LocalGraphView
from .partition import Partition, take_rows
from .peers import Peers
from .shard_graph import ShardGraph
from .sharded_view import ShardedGraphView, ShardGroup
from .solution import node_state, solution_columns, summarize
from .store import KnnReport, RefreshFn, StoreSpec
from .table import EXTRA, Columns, Rounds, StagingTable

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
        self._labels = torch.full((len(self.node_ids),), -1)
        self._table = StagingTable(spec, len(self.node_ids))
        self._inbox = Inbox()
        self._is_old = True  # the table has changed since the graph was made
        self._graph = ShardGraph(spec)
        self._staged: Columns | None = None
        self._solved: tuple[int, Columns] | None = None
        self._rounds = Rounds()
        self._indices: list[tuple[Tensor, RoundIndex]] = []

    def join(self, group: ShardGroup | None) -> None:
        """Talk to the other shards through `group` from now on; None where there are none."""
        self._group = group
        self._peers = Peers(self.partition, self._rank, group)

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
        self._inbox.write(node_ids - self._start, columns, stamp)

    def remove(self, node_ids: Int64[Tensor, " m"], stamp: Stamp | None = None) -> None:
        """See `GraphStore.remove`."""
        gone = torch.zeros(len(node_ids), dtype=torch.bool)
        self._inbox.write(node_ids - self._start, {"present": gone}, stamp)

    def seal(self) -> tuple[Stamp, ...]:
        """What has been put by now and may belong to the next `update_knn`."""
        return self._inbox.seal()

    def put_labels(self, node_ids: Int64[Tensor, " m"], labels: Int64[Tensor, " m"]) -> None:
        """See `GraphStore.put_labels`."""
        changed = self._labels.clone()
        changed[node_ids - self._start] = labels
        self._labels = changed

    def absorb(self, complete: Sequence[str] | None = None) -> None:
        """Write what has been put into the table; see `update_knn`."""
        written = self._inbox.take(self._table, complete)
        if not bool(written.any()):
            return
        self._is_old = True
        self._graph.write(self._table.peek("features"), written)

    def update_knn(self, complete: Sequence[str] | None = None) -> KnnReport:
        """See `GraphStore.update_knn`; the same report on every shard. Collective.

        Args:
            complete: Puts that have reached all their shards; None in one process.

        Raises:
            ValueError: No shard has any features.
        """
        began = time.perf_counter()
        self.absorb(complete)
        if not self._peers.any(self._is_old):
            self._inbox.mark_seen()
            return KnnReport(0, 0, True, 1.0, time.perf_counter() - began)
        columns = self._table.freeze()
        present = columns["present"]
        if not self._peers.total(int(present.sum())):
            raise ValueError("no features have been put; call put before update_knn")
        graph, report = self._graph.update(self._peers, columns["features"], present)
        changed = present
        if self._staged is not None:
            moved = graph["neighbor_ids"] != self._staged["neighbor_ids"]
            changed = present & moved.any(1)
        self._staged = {**columns, **graph}
        self._is_old = False
        self._inbox.mark_seen()
        num_changed = self._peers.total(int(changed.sum()))
        return replace(report, changed=num_changed, seconds=time.perf_counter() - began)

    def solve(self, fn: RefreshFn | None, round: int) -> Mapping[str, float]:
        """Run `fn` over the staged graph and hold the result back for `publish`. Collective.

        Returns:
            The numbers of `GraphStore.refresh` but "seconds_publish", the same on every shard.

        Raises:
            ValueError: The graph is not up to date, or `fn` returned what is no pseudo-label.
        """
        if self._peers.any(self._staged is None or self._is_old or self._inbox.has_unseen()):
            raise ValueError(
                "the graph is older than the features; call update_knn after the last put and "
                "before refresh"
            )
        assert self._staged is not None
        began = time.perf_counter()
        view = self._view(self._staged)
        earlier = [number for number in self._rounds.numbers() if number < round]
        last = self._rounds.get(earlier[-1]) if earlier else None
        state = node_state(self._staged, self._labels, self._device, last)
        found = None if fn is None else fn(view, state)
        columns = solution_columns(self.spec, state, found)
        numbers = summarize(state, columns, view.all_sum)
        numbers.update({} if found is None else found.numbers)
        seconds = torch.tensor([time.perf_counter() - began], dtype=torch.float64)
        numbers["seconds_solve"] = float(view.all_max(seconds.to(self._device)))
        self._solved = (round, {**self._staged, **columns})
        return numbers

    def publish(self, round: int) -> None:
        """Make the held result readable."""
        assert self._solved is not None, "solve comes before publish"
        assert self._solved[0] == round, f"round {self._solved[0]} was solved, not {round}"
        self._rounds.publish(round, self._solved[1])
        self._solved = None

    # Reads

    def published(self) -> tuple[int, ...]:
        return self._rounds.numbers()

    def rows(
        self, node_ids: Int64[Tensor, " m"], names: Sequence[str], round: int | None
    ) -> dict[str, Tensor]:
        """Rows of own nodes from the named columns; an `extra` column goes by its bare name.

        Raises:
            ValueError: No such round or column.
        """
        local = node_ids - self._start
        if tuple(names) == ("labels",):  # labels belong to no round
            return {"labels": take_rows(self._labels, local)}
        columns: Columns = {**self._columns(round), "labels": self._labels}
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
        """All that a snapshot holds, by part: "labels", "table", "staged", "round.<number>".

        Of what was put lately, what `absorb` has taken.
        """
        parts: dict[str, Columns] = {
            "labels": {"labels": self._labels},
            "table": self._table.freeze(),
        }
        if self._staged is not None and not self._is_old:
            parts["staged"] = self._staged
        return parts | {f"round.{q}": self._rounds.get(q) for q in self._rounds.numbers()}

    def load(self, parts: Mapping[str, Columns]) -> None:
        """Take over the own rows of what `contents` gave."""
        self._labels = parts["labels"]["labels"]
        self._table.load(parts["table"])
        self._staged = parts.get("staged")
        self._inbox = Inbox()
        self._is_old = self._staged is None
        self._graph = ShardGraph(self.spec)
        self._rounds = Rounds(
            {int(name[6:]): c for name, c in parts.items() if name.startswith("round.")}
        )

    # Helpers

    def _columns(self, round: int | None) -> Columns:
        """A published round, or what is staged (None)."""
        if round is not None:
            return self._rounds.get(round)
        if self._staged is None:
            raise ValueError("nothing can be read yet; call put and update_knn first")
        return self._staged

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
            rounds = [self._rounds.get(q) for q in self._rounds.numbers()]
            kept = [c["features"] for c in [*rounds, self._staged or {}, columns] if c]
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
