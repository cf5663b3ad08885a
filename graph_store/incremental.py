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
from jaxtyping import Bool, Float32, Float64, Int64, Shaped
from torch import Tensor

from .kernels.knn import merge_topk, search_bank
from .kernels.lists import (
    Framed,
    Hits,
    Lists,
    Partial,
    Ranking,
    admit,
    differing_rows,
    drift_of,
    drop_members,
    empty_lists,
    empty_partial,
    finish,
    rank_hits,
    rank_lists,
    touched_rows,
)
from .kernels.rounding import (
    Precision,
    Rounded,
    choose_unit,
    default_precision,
    half_lengths,
    product_error,
    round_to,
)
from .kernels.scaling import (
    MAX_RATIO,
    Frame,
    bank_in_frame,
    largest_entry,
    longest_row,
    middle_of,
    power_of_two,
    some_rows,
)
from .motion import Motion, common_motion, residuals
from .peers import Peers
from .sharded_lists import scan_over_shards, search_over_shards
from .slack import choose_slack, default_slack, shortest_slack
from .store import KnnReport
from .thresholds import best_threshold, num_scanned

# Rows (over all shards) of which the motion is estimated, and of which theta is chosen.
MOTION_SAMPLE = 1 << 11
THRESHOLD_SAMPLE = 1 << 21
# Rows of which the members are fetched at once.
RANK_ROWS = 1 << 18
# Before more rows than this are ranked, a sample of them says whether that is worth it.
PROBE_ROWS = 1 << 14
# A scan costs a product with every row; a rebuild shares each product between two rows.
REBUILD_SHARE = 0.9
# Where everything drifts, some rows are scanned twice, and the lists are long: a pair was measured
# to cost about twice what it costs in a build.
DRIFT_SHARE = 0.45
# Keys are off by what the longest reference makes of them; beyond this, a new frame is better.
MAX_GROWTH = 8.0
# With more rows than this unproved, a precision below float32 is given up.
COARSE_SHARE = 0.05
# Horizons round down by more than float64 arithmetic is off.
DOWN = 1.0 - 1e-7


@dataclass
class _Reference:
    """Where the lists were made: see the module. Arrays go by own row; written in place."""

    frame: Frame
    unit: float
    precision: Precision
    rows: Shaped[Tensor, "n D"]
    half: Float32[Tensor, " n"]
    longest: float
    lists: Lists
    drift: Float64[Tensor, " n"]
    certified: Bool[Tensor, " n"]
    is_tied: Bool[Tensor, " n"]
    motion: Motion | None = None
    pairs: int = 0
    scanned: int = 0

    @property
    def stretch(self) -> float:
        return 1.0 if self.motion is None else self.motion.stretch

    @property
    def errors(self) -> Float32[Tensor, " n"]:
        """By how much the keys of each row's list, and of what may come into it, can be off."""
        most = product_error(self.rows.shape[1], self.longest, self.precision)
        return self.lists.errors.clamp(max=most)

    def points(self, at: Int64[Tensor, " m"]) -> Float32[Tensor, "m D"]:
        """The references of some rows in float32."""
        return Rounded(self.rows[at], self.unit, self.precision).widen()

    def put(self, at: Int64[Tensor, " m"], found: Partial) -> None:
        """Keep the lists that were searched for some rows."""
        own = finish(found, self.half[at], self.rows.shape[1], self.precision)
        lists = self.lists
        lists.ids[at], lists.keys[at] = own.ids, own.keys
        lists.horizon[at], lists.errors[at] = own.horizon, own.errors

    def reach(self) -> Float64[Tensor, " n"]:
        """s h_i as a distance, rounded down."""
        h = self.lists.horizon.to(torch.float64).clamp(min=0)
        return (self.stretch * (2 * h).sqrt()) * DOWN


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
    _active: Bool[Tensor, " n"] = field(init=False)
    _reference: _Reference | None = field(init=False, default=None)
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
        self._rows, self._active = rows, active
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
        self._rows = _pad(self._rows, added, 0.0)
        self.neighbor_ids = _pad(self.neighbor_ids, added, -1)
        self.distances = _pad(self.distances, added, torch.inf)
        ref.rows, ref.half = _pad(ref.rows, added, 0.0), _pad(ref.half, added, torch.inf)
        ref.drift, ref.certified = _pad(ref.drift, added, 0.0), _pad(ref.certified, added, False)
        ref.is_tied = _pad(ref.is_tied, added, False)
        lists = ref.lists
        ref.lists = Lists(
            _pad(lists.ids, added, -1),
            _pad(lists.keys, added, torch.inf),
            _pad(lists.horizon, added, -torch.inf),
            _pad(lists.errors, added, torch.inf),
        )

    # Following

    def _follow(
        self, rows: Float32[Tensor, "n D"], active: Bool[Tensor, " n"], eta: float
    ) -> KnnReport | None:
        """Update what there is; None where everything should be built anew."""
        ref = self._reference
        if self.peers.any(ref is None or rows.shape != ref.rows.shape):
            return None
        before = self.neighbor_ids, self.distances
        assert ref is not None
        assert self._rows is not None
        self._reference = None  # until it is whole again
        step = _Step(self, ref, rows, active, eta)
        report = step.run()
        if report is None:
            self._drift = step.typical_drift()
            self._spent = self.peers.total(step.distances)
            self.neighbor_ids, self.distances = before
            return None
        self._reference = ref
        return report

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
        ref = _Reference(
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
        ref.put(at, self._search_all(framed, size))
        before = None if self._rows is None else self.neighbor_ids
        self.neighbor_ids = torch.full((rows.shape[0], self.k), -1, device=device)
        self.distances = torch.full_like(self.neighbor_ids, torch.inf, dtype=torch.float64)
        step = _Step(self, ref, rows, active, 0.0)
        ref.drift[at] = step.drift_of(at)
        evaluated = step.rank(at)
        step.certify()
        if step.is_too_coarse():
            self.precision = "float32"
            return self._rebuild(rows, active)
        evaluated += step.search_uncertified()
        ref.is_tied = active & ~ref.certified
        self._reference = ref
        is_changed = (
            active
            if before is None or before.shape != self.neighbor_ids.shape
            else ((self.neighbor_ids != before).any(1))
        )
        changed, certified, distances = peers.all_sum(
            torch.tensor([int(is_changed.sum()), int(ref.certified.sum()), evaluated])
        ).tolist()
        return KnnReport(
            total, changed, True, 1.0, 0.0, certified, distances + ref.pairs, rebuilt=True
        )

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

    def _search_all(self, own: Framed, size: int) -> Partial:
        return search_over_shards(self.peers, own, size)


@dataclass
class _Step:
    """One update while it is carried out; writes the graph's lists and neighbours."""

    graph: LiveGraph
    ref: _Reference
    rows: Float32[Tensor, "n D"]
    active: Bool[Tensor, " n"]
    eta: float
    theta: float = 0.0
    distances: int = 0
    searched: int = 0
    most_moved: bool = False
    is_searched: Bool[Tensor, " n"] = field(init=False)
    is_settled: Bool[Tensor, " n"] = field(init=False)
    is_kept: Bool[Tensor, " n"] = field(init=False)
    is_changed: Bool[Tensor, " N"] = field(init=False)

    def __post_init__(self) -> None:
        self.is_searched = torch.zeros_like(self.active)
        self.is_settled = torch.zeros_like(self.active)
        self.is_kept = torch.zeros_like(self.active)
        num_nodes, device = self.peers.partition.num_nodes, self.rows.device
        self.is_changed = torch.ones(num_nodes, dtype=torch.bool, device=device)

    @property
    def peers(self) -> Peers:
        return self.graph.peers

    def run(self) -> KnnReport | None:
        """Carry it out; None where all rows must be built anew."""
        graph, ref = self.graph, self.ref
        before = graph.neighbor_ids
        graph.neighbor_ids, graph.distances = before.clone(), graph.distances.clone()
        was_active = torch.isfinite(ref.half)
        assert graph._rows is not None
        is_moved = self.active & was_active & differing_rows(self.rows, graph._rows)
        is_new, is_gone = self.active & ~was_active, was_active & ~self.active
        if self._has_left_frame(is_moved | is_new):
            return None
        self._remove(is_gone)
        drifting = self._drifting(is_moved)
        touched = self._touched(is_moved, is_new | is_gone)
        if self._is_hopeless(touched, drifting, is_new):
            return None
        ref.drift[drifting] = self.drift_of(drifting)
        if not self._rank_and_split(touched, is_new):
            return None
        if not self._certify_and_search():
            return None
        return self._report((graph.neighbor_ids != before).any(1))

    # Parts of `run`

    def _has_left_frame(self, is_changed: Bool[Tensor, " n"]) -> bool:
        """Whether rows are too long for the frame, or there is none yet for anything."""
        largest = largest_entry(self.rows[is_changed]) * self.ref.frame.scale
        total = self.peers.total(int(torch.isfinite(self.ref.half).sum()))
        return total == 0 or self.peers.largest(largest) > MAX_RATIO

    def _remove(self, is_gone: Bool[Tensor, " n"]) -> None:
        if not self.peers.any(bool(is_gone.any())):
            return
        ref, graph = self.ref, self.graph
        ref.half[is_gone] = torch.inf
        ref.drift[is_gone] = 0.0
        ref.lists.ids[is_gone], ref.lists.keys[is_gone] = -1, torch.inf
        ref.lists.horizon[is_gone] = -torch.inf
        ref.certified[is_gone] = False
        graph.neighbor_ids[is_gone], graph.distances[is_gone] = -1, torch.inf

    def _drifting(self, is_moved: Bool[Tensor, " n"]) -> Int64[Tensor, " m"]:
        """Rows of which the drift has changed: all where the common motion is estimated anew."""
        ref, peers = self.ref, self.peers
        moved, total = peers.total(int(is_moved.sum())), peers.total(int(self.active.sum()))
        self.most_moved = 2 * moved > total
        at = is_moved.nonzero()[:, 0]
        if self.most_moved and self.rows.shape[1] * 8 <= total:
            motion = self._better_motion()
            if motion is not ref.motion:
                ref.motion = motion
                at = torch.isfinite(ref.half).nonzero()[:, 0]
        return at

    def _better_motion(self) -> Motion | None:
        """The rows' common motion from their references, if taking it out helps."""
        ref, peers = self.ref, self.peers
        sampled = (
            torch.isfinite(ref.half)
            & self.active
            & _is_sampled(peers, _motion_sample(self.rows.shape[1]), self.rows.device)
        )
        at = sampled.nonzero()[:, 0]
        scale, center = ref.frame.scale, _center(ref.frame).to(torch.float64)
        before = ref.points(at).to(torch.float64)
        after = self.rows[at].to(torch.float64) * scale - center
        motion, kept = None, torch.ones_like(at, dtype=torch.bool)
        for _ in range(2):  # again without the rows that go another way
            motion = common_motion(
                before[kept],
                after[kept],
                keep_scale=self.graph.keep_scale,
                all_sum=peers.all_sum,
            )
            if motion is None:
                return None
            left = torch.linalg.vector_norm(after - motion.apply(before), dim=1)
            kept = left <= 1.5 * float(peers.concat(left).median())
        whole = torch.linalg.vector_norm(after - before, dim=1)
        with_motion, without = peers.concat(left).median(), peers.concat(whole).median()
        return motion if bool(with_motion < 0.8 * without) else None

    def _touched(
        self, is_moved: Bool[Tensor, " n"], is_other: Bool[Tensor, " n"]
    ) -> Bool[Tensor, " n"]:
        """Rows whose list must be ranked again; removed nodes are taken out of the lists."""
        ref = self.ref
        self.is_changed = self.peers.concat(is_moved | is_other)
        self.is_kept = ref.certified & ~is_moved
        gone = self.peers.concat(is_other & ~self.active)
        touched = touched_rows(ref.lists, self.is_changed)
        if bool(gone.any()):
            drop_members(ref.lists, gone)
        return (touched | is_moved | ~ref.certified) & torch.isfinite(ref.half)

    def _rank_and_split(self, touched: Bool[Tensor, " n"], is_new: Bool[Tensor, " n"]) -> bool:
        """Rank touched lists, choose theta, scan the far movers; False where a build is cheaper."""
        self.distances += self.rank(touched.nonzero()[:, 0])
        old = torch.isfinite(self.ref.half)
        drift, limit = self.ref.drift[old], self._limits()[old]
        self.theta = self._choose(drift, limit)
        failing = self.peers.total(num_scanned(drift, limit, self.theta))
        # References that all have been left behind are paid for again and again: as soon as that
        # has cost a build, build.
        owed = self.ref.scanned if self.most_moved and failing else 0
        if self._costs(failing + self.peers.total(int(is_new.sum())), owed):
            return False
        # Lists have been ranked with these motions; what follows looks at lists anew.
        self.is_kept = torch.zeros_like(self.active)
        is_far = old & (self.ref.drift > self.theta) | is_new
        longest = longest_row(self._references_of(is_far.nonzero()[:, 0]))
        if self.peers.largest(longest) > MAX_GROWTH * self.ref.longest:
            return False
        self.theta = self._largest_drift(~is_far)
        self._scan(is_far)
        return True

    def _is_hopeless(
        self, touched: Bool[Tensor, " n"], drifting: Int64[Tensor, " m"], is_new: Bool[Tensor, " n"]
    ) -> bool:
        """Whether a sample of the touched rows says that most rows would be scanned.

        It is taken before all drifts are measured and all lists are ranked.
        """
        ref, peers = self.ref, self.peers
        at = touched.nonzero()[:, 0]
        num_touched = peers.total(len(at))
        if num_touched <= PROBE_ROWS:
            return False
        probe = at[:: max(1, num_touched // 1024)]
        ref.drift[drifting] = torch.inf  # not known yet, so nothing follows from a member's key
        ref.drift[probe] = self.drift_of(probe)
        self.distances += self.rank(probe)
        drift, limit = peers.concat(ref.drift[probe]), peers.concat(self._limits()[probe])
        share = num_scanned(drift, limit, best_threshold(drift, limit)) / len(drift)
        num_rows = peers.total(int(torch.isfinite(ref.half).sum()))
        new = peers.total(int(is_new.sum()))
        return share > 0.95 and self._costs(int(share * num_rows) + new)

    def _limits(self) -> Float64[Tensor, " n"]:
        """Rows escape a scan while theta is less than this (Theorem B; C for eta > 0)."""
        ref = self.ref
        farthest = self.graph.distances[:, -1] * ref.frame.scale / (1 + self.eta)
        limit = ref.reach() - ref.drift - farthest
        return torch.where(torch.isinf(ref.lists.horizon), torch.inf, limit)

    def _choose(self, drift: Float64[Tensor, " m"], limit: Float64[Tensor, " m"]) -> float:
        peers = self.peers
        stride = max(1, peers.total(len(drift)) // THRESHOLD_SAMPLE)
        return best_threshold(peers.concat(drift[::stride]), peers.concat(limit[::stride]))

    def _costs(self, scanned: int, owed: int = 0) -> bool:
        """Whether scanning so many rows, beside those owed, costs as much as a build."""
        total = self.peers.total(int(self.active.sum()))
        pairs = (scanned + owed) * total - scanned**2 // 2
        build = min(self.ref.pairs, total * (total - 1) // 2)
        share = DRIFT_SHARE if self.most_moved else REBUILD_SHARE
        return pairs > share * max(build, total)

    def _largest_drift(self, of: Bool[Tensor, " n"]) -> float:
        drift = self.ref.drift[of & torch.isfinite(self.ref.half)]
        return self.peers.largest(float(drift.max()) if len(drift) else 0.0)

    def _certify_and_search(self) -> bool:
        """Prove or search all rows; False where the precision leaves too many to be searched."""
        self.certify()
        is_left = self._is_left()
        # A new reference takes the row's own drift out, and fills a list that has lost members.
        a = self.graph.distances[:, -1] * self.ref.frame.scale
        has_hope = (a + self.theta < self.ref.reach()) | (self.ref.lists.ids[:, -1] < 0)
        again = is_left & ~self.is_searched & (has_hope | (self.theta <= 1e-6 * a))
        again &= ~self.ref.is_tied
        if self.peers.any(bool(again.any())):
            self._scan(again)
            self.certify()
            self.ref.is_tied |= again & self._is_left()
        if self.is_too_coarse():
            return False
        self.distances += self.search_uncertified()
        return True

    def typical_drift(self) -> float:
        """Median drift over all rows in units of the data, for the choice of the next lists."""
        known = torch.isfinite(self.ref.half) & torch.isfinite(self.ref.drift)
        drift = self.peers.concat(self.ref.drift[known])
        return float(drift.median()) / self.ref.frame.scale if len(drift) else 0.0

    def _report(self, is_changed: Bool[Tensor, " n"]) -> KnnReport:
        ref, graph = self.ref, self.graph
        ref.is_tied &= ~is_changed
        unit = ref.frame.scale
        tau = ref.reach() - ref.drift - self.theta
        loose = self.active & ~ref.certified & ~self.is_settled
        bound = (graph.distances[loose, -1] * unit / tau[loose]).amax() if loose.any() else 1.0
        # Theorem C: members nearer than tau are true neighbours at their true rank.
        unproved = (graph.distances[loose] * unit >= tau[loose, None]).sum()
        counts = [self.is_searched.sum(), is_changed.sum(), ref.certified.sum(), self.active.sum()]
        counts += [torch.tensor(self.distances), unproved, loose.sum()]
        numbers = self.peers.all_sum(torch.stack(counts)).tolist()
        searched, changed, certified, num_rows, distances, num_unproved, num_loose = numbers
        ref.scanned += searched if self.most_moved else 0
        return KnnReport(
            searched,
            changed,
            exact=num_loose == 0,
            recall=1.0 - num_unproved / max(1, num_rows * graph.k),
            seconds=0.0,
            certified=certified,
            distances=distances,
            bound=max(1.0, self.peers.largest(float(bound))),
        )

    # Steps that a rebuild uses too

    def drift_of(self, at: Int64[Tensor, " m"]) -> Float64[Tensor, " m"]:
        """Distance of some own rows from where the common motion takes their references."""
        ref = self.ref
        center, drift = _center(ref.frame), self.ref.drift.new_empty(len(at))
        for start in range(0, len(at), RANK_ROWS):
            own = at[start : start + RANK_ROWS]
            rows, points = self.rows[own], ref.points(own)
            drift[start : start + RANK_ROWS] = (
                drift_of(rows, points, ref.frame.scale, center)
                if ref.motion is None
                else residuals(ref.motion, points, rows, ref.frame.scale, center)
            )
        return drift

    def is_too_coarse(self) -> bool:
        """Whether a precision below float32 leaves many rows without proof."""
        if self.ref.precision == "float32":
            return False
        left, total = self.peers.total(int(self._is_left().sum())), self.active.sum()
        return left > COARSE_SHARE * self.peers.total(int(total))

    def rank(self, at: Int64[Tensor, " m"]) -> int:
        """Rank the lists of some own rows by canonical distance; how many distances it took."""
        ref, graph = self.ref, self.graph
        evaluated = 0
        largest, errors = self._largest_drift(torch.ones_like(self.active)), ref.errors
        chunks = max(self.peers.counts(-(-len(at) // RANK_ROWS)))
        for start in range(0, chunks * RANK_ROWS, RANK_ROWS):
            own = at[start : start + RANK_ROWS]
            ids = ref.lists.ids[own]
            positions, (bank, drift) = self.peers.members(ids, self.rows, ref.drift)
            members = Ranking(
                bank,
                drift,
                positions,
                largest,
                ref.stretch,
                errors[own],
                ref.frame.scale,
                self.is_changed,
                self.is_kept[own],
            )
            found, distances = graph.neighbor_ids[own], graph.distances[own]
            evaluated += rank_lists(ref.lists, own, self.rows, ref.drift, members, found, distances)
            graph.neighbor_ids[own], graph.distances[own] = found, distances
        return evaluated

    def certify(self) -> None:
        """Mark the rows whose list proves their neighbours."""
        ref = self.ref
        self.theta = self._largest_drift(torch.ones_like(self.active))
        tau = ref.reach() - ref.drift - self.theta
        a = self.graph.distances[:, -1] * ref.frame.scale
        is_whole = torch.isinf(ref.lists.horizon) & (ref.lists.horizon > 0)
        ref.certified = ((a < tau) | is_whole) & torch.isfinite(ref.half)

    def search_uncertified(self) -> int:
        """Search the rows that no list can certify among all rows, as they are now."""
        graph, peers = self.graph, self.peers
        at = self._is_left().nonzero()[:, 0]
        if not peers.any(len(at) > 0):
            return 0
        own = self.active.nonzero()[:, 0]
        bank = bank_in_frame(self.rows[own], own + peers.start, self.ref.frame)
        for root, part, (queries, ids) in peers.blocks(self.rows[at], at + peers.start):
            found, distances = search_bank(bank, queries, graph.k, ids)
            parts = peers.collect(found, root), peers.collect(distances, root)
            if root == peers.rank:
                best = merge_topk(*parts, graph.k)
                graph.neighbor_ids[at[part]], graph.distances[at[part]] = best
        self.is_searched[at] = True
        self.is_settled[at] = True
        return len(at) * peers.total(len(own))

    def _is_left(self) -> Bool[Tensor, " n"]:
        """Rows that are neither certified nor within the tolerance."""
        ref = self.ref
        tau = ref.reach() - ref.drift - self.theta
        a = self.graph.distances[:, -1] * ref.frame.scale
        is_good = ref.certified | ((tau > 0) & (a <= (1 + self.eta) * tau) & (self.eta > 0))
        return self.active & ~is_good

    def _scan(self, is_scanned: Bool[Tensor, " n"]) -> None:
        """Move the references of some rows to where they are, and mend all lists."""
        ref, graph, peers = self.ref, self.graph, self.peers
        scanned = peers.concat(is_scanned)
        if not bool(scanned.any()):
            return
        at = is_scanned.nonzero()[:, 0]
        self._move_references(at)
        self.is_searched |= is_scanned
        drop_members(ref.lists, scanned)
        found = empty_partial(len(at), ref.lists.size, self.rows.device)
        others = torch.isfinite(ref.half) & ~is_scanned
        num_hits = 0

        def limits() -> Float32[Tensor, " n"]:
            return torch.where(others, ref.lists.horizon + ref.errors, -torch.inf)

        def offer(hits: Hits) -> None:
            nonlocal num_hits
            num_hits += len(hits.rows)
            admit(ref.lists, hits, ref.errors)
            places, (bank,) = peers.members(hits.nodes.to(torch.int64), self.rows)
            rank_hits(hits, self.rows, bank, places, graph.neighbor_ids, graph.distances)

        scan_over_shards(peers, self._framed(), at, limits, found, offer)
        ref.put(at, found)
        self.distances += self.rank(at)
        num_others = peers.total(int(others.sum())) + peers.total(len(at)) // 2
        self.distances += num_hits + len(at) * num_others

    def _move_references(self, at: Int64[Tensor, " m"]) -> None:
        ref = self.ref
        rounded = round_to(self._references_of(at), ref.precision, ref.unit)
        ref.rows[at] = rounded.values
        ref.half[at] = half_lengths(rounded)
        ref.longest = self.peers.largest(max(ref.longest, longest_row(rounded.widen())))
        ref.drift[at] = self.drift_of(at)

    def _references_of(self, at: Int64[Tensor, " m"]) -> Float32[Tensor, "m D"]:
        """Where the references of some own rows would have to be for them not to have drifted."""
        ref = self.ref
        framed = ref.frame.apply(self.rows[at], torch.float64).rows
        if ref.motion is not None:
            framed = ref.motion.undo(framed)
        return framed.to(torch.float32)

    def _framed(self) -> Framed:
        ref, device = self.ref, self.rows.device
        ids = torch.arange(len(self.active), dtype=torch.int32, device=device) + self.peers.start
        return Framed(ref.rows, ref.half, ids, ref.unit, ref.precision)


def _pad(x: Tensor, added: int, value: int | float) -> Tensor:
    """Further rows of one value."""
    return torch.cat([x, x.new_full((added, *x.shape[1:]), value)])


def _longest(half: Float32[Tensor, " n"]) -> float:
    """An upper bound on the lengths of rows of such half squares."""
    return 1.001 * (2.0 * float(half.max())) ** 0.5 if len(half) else 0.0


def _center(frame: Frame) -> Float32[Tensor, " D"]:
    assert frame.center is not None
    return frame.center


def _motion_sample(dim: int) -> int:
    """Rows that tell a rotation of `dim` dimensions well enough; any motion is valid."""
    return max(MOTION_SAMPLE, min(4 * MOTION_SAMPLE, 8 * dim))


def _is_sampled(peers: Peers, size: int, device: torch.device) -> Bool[Tensor, " n"]:
    """A set of about `size` nodes that does not depend on the shards."""
    start, stop = peers.partition.span(peers.rank)
    stride = max(1, peers.partition.num_nodes // size)
    return torch.arange(start, stop, device=device) % stride == 0
