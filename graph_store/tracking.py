"""What an update of a followed graph does to some of its rows: rank, certify, scan, search.

Everything here keeps the lists valid, whatever it is called for and in whatever order; `following`
decides that, and `incremental` tells why it is right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from .kernels.knn import merge_topk, search_bank
from .kernels.lists import (
    Framed,
    Hits,
    Ranking,
    admit,
    drift_of,
    drop_members,
    empty_partial,
    rank_hits,
    rank_lists,
)
from .kernels.rounding import half_lengths, round_to
from .kernels.scaling import bank_in_frame, longest_row
from .motion import residuals
from .peers import Peers
from .references import References
from .sharded_lists import scan_over_shards

# Rows of which the members are fetched at once.
RANK_ROWS = 1 << 18
# With more rows than this unproved, a precision below float32 is given up.
COARSE_SHARE = 0.05


@dataclass
class Tracked:
    """The own rows during one update; neighbours and references are written in place. Collective.

    Attributes:
        rows, active: As they are now.
        neighbor_ids, distances: Of the own rows, by (canonical distance, id).
        eta: Tolerated error of distances.
        theta: No row that is not scanned has drifted farther.
        most_moved: Whether more than half of the rows have moved.
        evaluated: Pairs of rows that were looked at.
        is_searched: Rows that were compared with all others.
        is_settled: Rows among them that were compared as they are now, not by their references.
        is_changed: Nodes that have moved, come or gone.
        is_kept: Rows that have not moved, and whose neighbours before were right.
    """

    peers: Peers
    k: int
    ref: References
    rows: Float32[Tensor, "n D"]
    active: Bool[Tensor, " n"]
    neighbor_ids: Int64[Tensor, "n k"]
    distances: Float64[Tensor, "n k"]
    eta: float = 0.0
    theta: float = 0.0
    most_moved: bool = False
    evaluated: int = 0
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

    def drift_of(self, at: Int64[Tensor, " m"]) -> Float64[Tensor, " m"]:
        """Distance of some own rows from where the common motion takes their references."""
        ref = self.ref
        center, drift = ref.center, self.ref.drift.new_empty(len(at))
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
        left, total = self.peers.total(int(self.is_left().sum())), self.active.sum()
        return left > COARSE_SHARE * self.peers.total(int(total))

    def rank(self, at: Int64[Tensor, " m"]) -> int:
        """Rank the lists of some own rows by canonical distance; how many distances it took."""
        ref = self.ref
        evaluated = 0
        largest, errors = self.largest_drift(torch.ones_like(self.active)), ref.errors
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
            found, distances = self.neighbor_ids[own], self.distances[own]
            evaluated += rank_lists(ref.lists, own, self.rows, ref.drift, members, found, distances)
            self.neighbor_ids[own], self.distances[own] = found, distances
        return evaluated

    def certify(self) -> None:
        """Mark the rows whose list proves their neighbours."""
        ref = self.ref
        self.theta = self.largest_drift(torch.ones_like(self.active))
        tau = ref.reach() - ref.drift - self.theta
        a = self.distances[:, -1] * ref.frame.scale
        is_whole = torch.isinf(ref.lists.horizon) & (ref.lists.horizon > 0)
        ref.certified = ((a < tau) | is_whole) & torch.isfinite(ref.half)

    def search_uncertified(self) -> int:
        """Search the rows that no list can certify among all rows, as they are now."""
        peers = self.peers
        at = self.is_left().nonzero()[:, 0]
        if not peers.any(len(at) > 0):
            return 0
        own = self.active.nonzero()[:, 0]
        bank = bank_in_frame(self.rows[own], own + peers.start, self.ref.frame)
        for root, part, (queries, ids) in peers.blocks(self.rows[at], at + peers.start):
            found, distances = search_bank(bank, queries, self.k, ids)
            parts = peers.collect(found, root), peers.collect(distances, root)
            if root == peers.rank:
                best = merge_topk(*parts, self.k)
                self.neighbor_ids[at[part]], self.distances[at[part]] = best
        self.is_searched[at] = True
        self.is_settled[at] = True
        return len(at) * peers.total(len(own))

    def is_left(self) -> Bool[Tensor, " n"]:
        """Rows that are neither certified nor within the tolerance."""
        ref = self.ref
        tau = ref.reach() - ref.drift - self.theta
        a = self.distances[:, -1] * ref.frame.scale
        is_good = ref.certified | ((tau > 0) & (a <= (1 + self.eta) * tau) & (self.eta > 0))
        return self.active & ~is_good

    def scan(self, is_scanned: Bool[Tensor, " n"]) -> None:
        """Move the references of some rows to where they are, and mend all lists."""
        ref, peers = self.ref, self.peers
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

        def offer(hits: Hits, root: int) -> None:
            nonlocal num_hits
            num_hits += len(hits.rows)
            admit(ref.lists, hits, ref.errors)
            places, (bank,) = peers.members(hits.nodes.to(torch.int64), self.rows, owner=root)
            rank_hits(hits, self.rows, bank, places, self.neighbor_ids, self.distances)

        scan_over_shards(peers, self._framed(), at, limits, found, offer)
        ref.put(at, found)
        self.evaluated += self.rank(at)
        num_others = peers.total(int(others.sum())) + peers.total(len(at)) // 2
        self.evaluated += num_hits + len(at) * num_others

    def _move_references(self, at: Int64[Tensor, " m"]) -> None:
        ref = self.ref
        rounded = round_to(self.references_of(at), ref.precision, ref.unit)
        ref.rows[at] = rounded.values
        ref.half[at] = half_lengths(rounded)
        ref.longest = self.peers.largest(max(ref.longest, longest_row(rounded.widen())))
        ref.drift[at] = self.drift_of(at)

    def references_of(self, at: Int64[Tensor, " m"]) -> Float32[Tensor, "m D"]:
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

    def largest_drift(self, of: Bool[Tensor, " n"]) -> float:
        """Of these rows of all shards, in the frame's units."""
        drift = self.ref.drift[of & torch.isfinite(self.ref.half)]
        return self.peers.largest(float(drift.max()) if len(drift) else 0.0)
