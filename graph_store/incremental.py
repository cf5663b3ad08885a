"""An exact kNN graph that follows moving rows: search only what the motion could have changed.

Every row has a reference position, and a list of the nodes whose references are nearest with a
horizon that no other reference is within (`kernels.lists`). While rows drift, lists stay valid:
with drift_i = ||x_i - T r_i|| for the motion T that all rows share (`motion`),

    d(x_i, x_j) >= s d(r_i, r_j) - drift_i - drift_j >= s h_i - drift_i - theta

for every j outside the list of i, theta being the largest drift. A row whose k-th neighbour in its
list is nearer than that has its true neighbours: it is certified. So an update

1. measures drifts, and ranks the lists with a moved member by canonical distances;
2. picks theta (`thresholds`); rows that drifted farther get a new reference, where they are now,
   and are scanned: their references against all others, for their own list and, by the same
   products, for the lists that they have come near;
3. does the same with rows that are not certified by then, and searches those that even a fresh
   list cannot certify (ties, more identical rows than a list holds) among the rows themselves;
4. builds everything anew where that is cheaper.

Canonical distances decide every order and certificates every list, so the result equals a build
from nothing: ids, order and distances, on any number of shards.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from .following import follow, typical_drift
from .kernels.lists import Framed, empty_lists
from .kernels.rounding import Precision, choose_unit, default_precision, half_lengths, round_to
from .kernels.scaling import (
    Frame,
    bank_in_frame,
    largest_entry,
    middle_of,
    power_of_two,
    some_rows,
)
from .peers import Peers
from .references import References, pad
from .sharded_lists import search_over_shards
from .slack import choose_slack, default_slack, shortest_slack
from .store import KnnReport
from .tracking import Tracked


@dataclass
class LiveGraph:
    """The kNN graph of one shard's rows, kept up to date.

    Args:
        k: Neighbours of each row.
        slack: Size of the lists; None: chosen from the drift that is seen.
        keep_scale: True for unit rows, which only rotate together.
        precision: Of the references; None: `default_precision` of the rows' device. It changes
            what an update costs, not what it finds; where it is too coarse, float32 is taken.

    Attributes:
        neighbor_ids, distances: The own rows' neighbours by (canonical distance, id), -1/inf where
            there are none. New tensors after every update.
    """

    peers: Peers
    k: int
    slack: int | None = None
    keep_scale: bool = False
    precision: Precision | None = None
    neighbor_ids: Int64[Tensor, "n k"] = field(init=False)
    distances: Float64[Tensor, "n k"] = field(init=False)
    _rows: Float32[Tensor, "n D"] | None = field(init=False, default=None)
    _reference: References | None = field(init=False, default=None)
    _drift: float = field(init=False, default=0.0)
    _hopeless: float = field(init=False, default=torch.inf)
    _spent: int = field(init=False, default=0)

    def update(
        self, rows: Float32[Tensor, "n D"], active: Bool[Tensor, " n"], *, eta: float = 0.0
    ) -> KnnReport:
        """Bring the graph to new rows. Collective.

        Args:
            rows: As `prepare_rows` makes them; not copied, so nobody may write to them later.
            active: Rows that take part; the others have no neighbours and are nobody's.
            eta: Let rows be whose neighbours are, rank by rank, at most 1 + eta times as far as
                the true ones; 0: exact.

        Raises:
            ValueError: eta is negative.
        """
        if not eta >= 0:
            raise ValueError(f"eta must be >= 0, got {eta}")
        began = time.perf_counter()
        self._spent = 0
        report = self._follow(rows, active, eta)
        if report is None:
            report = self._rebuild(rows, active)
            report = replace(report, distances=report.distances + self._spent)
        self._rows = rows
        return replace(report, seconds=time.perf_counter() - began)

    def grow(self, peers: Peers) -> None:
        """Make room for rows with further ids, in one process; they come with the next update."""
        assert peers.group is None, "shards own fixed ranges of ids"
        old, more = self.peers.partition.num_nodes, peers.partition.num_nodes
        self.peers = peers
        ref = self._reference
        if more == old or ref is None or self._rows is None:
            return
        added = more - old
        self._rows = pad(self._rows, added, 0.0)
        self.neighbor_ids = pad(self.neighbor_ids, added, -1)
        self.distances = pad(self.distances, added, torch.inf)
        ref.grow(added)

    # Following

    def _follow(
        self, rows: Float32[Tensor, "n D"], active: Bool[Tensor, " n"], eta: float
    ) -> KnnReport | None:
        """Update what there is; None where everything should be built anew."""
        ref = self._reference
        if self.peers.any(ref is None or rows.shape != ref.rows.shape):
            return None
        assert ref is not None
        assert self._rows is not None
        self._reference = None  # until it is whole again
        neighbors = self.neighbor_ids, self.distances  # `follow` writes to copies
        tracked = Tracked(self.peers, self.k, ref, rows, active, *neighbors, eta)
        report = follow(tracked, self._rows, keep_scale=self.keep_scale)
        if report is None:
            self._drift = typical_drift(tracked)
            self._spent = self.peers.total(tracked.evaluated)
            return None
        self._take(tracked)
        return report

    def _take(self, tracked: Tracked) -> None:
        self._reference = tracked.ref
        self.neighbor_ids, self.distances = tracked.neighbor_ids, tracked.distances

    # Building

    def _rebuild(self, rows: Float32[Tensor, "n D"], active: Bool[Tensor, " n"]) -> KnnReport:
        peers, device = self.peers, rows.device
        precision = self.precision or default_precision(device)
        frame = self._frame(rows[active])
        total = peers.total(int(active.sum()))
        at = active.nonzero()[:, 0]
        bank = bank_in_frame(rows[at], at, frame)
        unit = choose_unit(peers.largest(largest_entry(bank.scaled.rows)), precision)
        rounded = round_to(bank.scaled.rows, precision, unit)
        half_of = bank.scaled.half if precision == "float32" else half_lengths(rounded)
        longest = peers.largest(max(bank.longest, _longest(half_of)))
        reference = torch.zeros(rows.shape, dtype=rounded.values.dtype, device=device)
        reference[at] = rounded.values
        half = rows.new_full(rows.shape[:1], torch.inf)
        half[at] = half_of
        size = self._list_size(rows, active, frame, total)
        lists = empty_lists(rows.shape[0], size, device)
        ids = (at + peers.start).to(torch.int32)
        framed = Framed(rounded.values, half_of, ids, unit, precision)
        drift = torch.zeros(rows.shape[0], dtype=torch.float64, device=device)
        ref = References(
            frame,
            unit,
            precision,
            reference,
            half,
            longest,
            lists,
            drift,
            torch.zeros_like(active),
            torch.zeros_like(active),
            pairs=total * (total - 1) // 2,
        )
        ref.put(at, search_over_shards(peers, framed, size))
        neighbor_ids = torch.full((rows.shape[0], self.k), -1, device=device)
        distances = torch.full_like(neighbor_ids, torch.inf, dtype=torch.float64)
        tracked = Tracked(peers, self.k, ref, rows, active, neighbor_ids, distances)
        ref.drift[at] = tracked.drift_of(at)
        evaluated = tracked.rank(at)
        tracked.certify()
        if tracked.is_too_coarse():
            self.precision = "float32"
            return self._rebuild(rows, active)
        evaluated += tracked.search_uncertified()
        ref.is_tied = active & ~ref.certified
        before = neighbor_ids[:0] if self._rows is None else self.neighbor_ids
        is_same_size = before.shape == neighbor_ids.shape
        is_changed = (neighbor_ids != before).any(1) if is_same_size else active
        self._take(tracked)
        changed, certified, pairs = peers.all_sum(
            torch.tensor([int(is_changed.sum()), int(ref.certified.sum()), evaluated])
        ).tolist()
        return KnnReport(total, changed, True, 1.0, 0.0, certified, pairs + ref.pairs, rebuilt=True)

    def _frame(self, rows: Float32[Tensor, "m D"]) -> Frame:
        """The frame of the rows of all shards: centred, entries in [-1, 1]."""
        scale = power_of_two(self.peers.largest(largest_entry(rows)))
        some = self.peers.concat(some_rows(rows, self.peers.total(rows.shape[0])) * scale)
        center = middle_of(some) if len(some) else some.new_zeros(rows.shape[1])
        return Frame(scale, center, is_product=False)

    def _list_size(
        self, rows: Float32[Tensor, "n D"], active: Bool[Tensor, " n"], frame: Frame, total: int
    ) -> int:
        if self.slack is not None:
            return max(self.slack, default_slack(1))
        if self._drift == 0.0:
            return default_slack(self.k)
        if self._drift >= self._hopeless:
            return shortest_slack(self.k)
        size = choose_slack(self.peers, rows, active, frame, self.k, self._drift, total)
        # No list outlasts such a drift, so as long as it stays there is no need to ask again.
        self._hopeless = 0.8 * self._drift if size == shortest_slack(self.k) else torch.inf
        return size


def _longest(half: Float32[Tensor, " n"]) -> float:
    """An upper bound on the lengths of rows of such half squares."""
    return 1.001 * (2.0 * float(half.max())) ** 0.5 if len(half) else 0.0
