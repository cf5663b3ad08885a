"""One update of a followed graph: what is looked at, and when a build is cheaper.

`incremental` tells why the result is exact.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from .kernels.lists import differing_rows, drop_members, touched_rows
from .kernels.scaling import MAX_RATIO, largest_entry, longest_row
from .motion import Motion, common_motion
from .peers import Peers
from .store import KnnReport
from .thresholds import best_threshold, num_scanned
from .tracking import Tracked

# Rows (over all shards) of which the motion is estimated, and of which theta is chosen.
MOTION_SAMPLE = 1 << 11
THRESHOLD_SAMPLE = 1 << 21
# Before more rows than this are ranked, a sample of them says whether that is worth it.
PROBE_ROWS = 1 << 14
# A scan costs a product with every row; a rebuild shares each product between two rows.
REBUILD_SHARE = 0.9
# Where everything drifts, some rows are scanned twice, and the lists are long: a pair was measured
# to cost about twice what it costs in a build.
DRIFT_SHARE = 0.45
# Keys are off by what the longest reference makes of them; beyond this, a new frame is better.
MAX_GROWTH = 8.0


def follow(
    t: Tracked, rows_before: Float32[Tensor, "n D"], *, keep_scale: bool
) -> KnnReport | None:
    """Bring the neighbours up to date; None where all rows should be built anew. Collective.

    Args:
        t: With the neighbours as they were; on None they and the references mean nothing any more.
        keep_scale: Whether the common motion may not stretch.
    """
    ref = t.ref
    before = t.neighbor_ids
    t.neighbor_ids, t.distances = before.clone(), t.distances.clone()
    was_active = torch.isfinite(ref.half)
    is_moved = t.active & was_active & differing_rows(t.rows, rows_before)
    is_new, is_gone = t.active & ~was_active, was_active & ~t.active
    if _has_left_frame(t, is_moved | is_new):
        return None
    _remove(t, is_gone)
    drifting = _drifting(t, is_moved, keep_scale)
    touched = _touched(t, is_moved, is_new | is_gone)
    if _is_hopeless(t, touched, drifting, is_new):
        return None
    ref.drift[drifting] = t.drift_of(drifting)
    if not _rank_and_split(t, touched, is_new):
        return None
    if not _certify_and_search(t):
        return None
    return _report(t, (t.neighbor_ids != before).any(1))


def _has_left_frame(t: Tracked, is_changed: Bool[Tensor, " n"]) -> bool:
    """Whether rows are too long for the frame, or there is none yet for anything."""
    largest = largest_entry(t.rows[is_changed]) * t.ref.frame.scale
    total = t.peers.total(int(torch.isfinite(t.ref.half).sum()))
    return total == 0 or t.peers.largest(largest) > MAX_RATIO


def _remove(t: Tracked, is_gone: Bool[Tensor, " n"]) -> None:
    if not t.peers.any(bool(is_gone.any())):
        return
    t.ref.remove(is_gone)
    t.neighbor_ids[is_gone], t.distances[is_gone] = -1, torch.inf


def _drifting(t: Tracked, is_moved: Bool[Tensor, " n"], keep_scale: bool) -> Int64[Tensor, " m"]:
    """Rows of which the drift has changed: all where the common motion is estimated anew."""
    ref, peers = t.ref, t.peers
    moved, total = peers.total(int(is_moved.sum())), peers.total(int(t.active.sum()))
    t.most_moved = 2 * moved > total
    at = is_moved.nonzero()[:, 0]
    if t.most_moved and t.rows.shape[1] * 8 <= total:
        motion = _better_motion(t, keep_scale)
        if motion is not ref.motion:
            ref.motion = motion
            at = torch.isfinite(ref.half).nonzero()[:, 0]
    return at


def _better_motion(t: Tracked, keep_scale: bool) -> Motion | None:
    """The rows' common motion from their references, if taking it out helps."""
    ref, peers = t.ref, t.peers
    sampled = (
        torch.isfinite(ref.half)
        & t.active
        & _is_sampled(peers, _motion_sample(t.rows.shape[1]), t.rows.device)
    )
    at = sampled.nonzero()[:, 0]
    scale, center = ref.frame.scale, ref.center.to(torch.float64)
    before = ref.points(at).to(torch.float64)
    after = t.rows[at].to(torch.float64) * scale - center
    motion, kept = None, torch.ones_like(at, dtype=torch.bool)
    for _ in range(2):  # again without the rows that go another way
        motion = common_motion(
            before[kept],
            after[kept],
            keep_scale=keep_scale,
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
    t: Tracked, is_moved: Bool[Tensor, " n"], is_other: Bool[Tensor, " n"]
) -> Bool[Tensor, " n"]:
    """Rows whose list must be ranked again; removed nodes are taken out of the lists."""
    ref = t.ref
    t.is_changed = t.peers.concat(is_moved | is_other)
    t.is_kept = ref.certified & ~is_moved
    gone = t.peers.concat(is_other & ~t.active)
    touched = touched_rows(ref.lists, t.is_changed)
    if bool(gone.any()):
        drop_members(ref.lists, gone)
    return (touched | is_moved | ~ref.certified) & torch.isfinite(ref.half)


def _rank_and_split(t: Tracked, touched: Bool[Tensor, " n"], is_new: Bool[Tensor, " n"]) -> bool:
    """Rank touched lists, choose theta, scan the far movers; False where a build is cheaper."""
    t.evaluated += t.rank(touched.nonzero()[:, 0])
    old = torch.isfinite(t.ref.half)
    drift, limit = t.ref.drift[old], _limits(t)[old]
    t.theta = _choose(t, drift, limit)
    failing = t.peers.total(num_scanned(drift, limit, t.theta))
    # References that all have been left behind are paid for again and again: as soon as that
    # has cost a build, build.
    owed = t.ref.scanned if t.most_moved and failing else 0
    if _costs(t, failing + t.peers.total(int(is_new.sum())), owed):
        return False
    # Lists have been ranked with these motions; what follows looks at lists anew.
    t.is_kept = torch.zeros_like(t.active)
    is_far = old & (t.ref.drift > t.theta) | is_new
    longest = longest_row(t.references_of(is_far.nonzero()[:, 0]))
    if t.peers.largest(longest) > MAX_GROWTH * t.ref.longest:
        return False
    t.theta = t.largest_drift(~is_far)
    t.scan(is_far)
    return True


def _is_hopeless(
    t: Tracked,
    touched: Bool[Tensor, " n"],
    drifting: Int64[Tensor, " m"],
    is_new: Bool[Tensor, " n"],
) -> bool:
    """Whether a sample of the touched rows says that most rows would be scanned.

    It is taken before all drifts are measured and all lists are ranked.
    """
    ref, peers = t.ref, t.peers
    at = touched.nonzero()[:, 0]
    num_touched = peers.total(len(at))
    if num_touched <= PROBE_ROWS or not t.most_moved:
        return False
    probe = at[:: max(1, num_touched // 1024)]
    ref.drift[drifting] = torch.inf  # not known yet, so nothing follows from a member's key
    ref.drift[probe] = t.drift_of(probe)
    t.evaluated += t.rank(probe)
    drift, limit = peers.concat(ref.drift[probe]), peers.concat(_limits(t)[probe])
    share = num_scanned(drift, limit, best_threshold(drift, limit)) / len(drift)
    num_rows = peers.total(int(torch.isfinite(ref.half).sum()))
    new = peers.total(int(is_new.sum()))
    return share > 0.95 and _costs(t, int(share * num_rows) + new)


def _limits(t: Tracked) -> Float64[Tensor, " n"]:
    """Rows escape a scan while theta is less than this (Theorem B; C for eta > 0)."""
    ref = t.ref
    farthest = t.distances[:, -1] * ref.frame.scale / (1 + t.eta)
    limit = ref.reach() - ref.drift - farthest
    return torch.where(torch.isinf(ref.lists.horizon), torch.inf, limit)


def _choose(t: Tracked, drift: Float64[Tensor, " m"], limit: Float64[Tensor, " m"]) -> float:
    peers = t.peers
    stride = max(1, peers.total(len(drift)) // THRESHOLD_SAMPLE)
    return best_threshold(peers.concat(drift[::stride]), peers.concat(limit[::stride]))


def _costs(t: Tracked, scanned: int, owed: int = 0) -> bool:
    """Whether scanning so many rows, beside those owed, costs as much as a build."""
    total = t.peers.total(int(t.active.sum()))
    pairs = (scanned + owed) * total - scanned**2 // 2
    build = min(t.ref.pairs, total * (total - 1) // 2)
    share = DRIFT_SHARE if t.most_moved else REBUILD_SHARE
    return pairs > share * max(build, total)


def _certify_and_search(t: Tracked) -> bool:
    """Prove or search all rows; False where the precision leaves too many to be searched."""
    t.certify()
    is_left = t.is_left()
    # A new reference takes the row's own drift out, and fills a list that has lost members.
    a = t.distances[:, -1] * t.ref.frame.scale
    has_hope = (a + t.theta < t.ref.reach()) | (t.ref.lists.ids[:, -1] < 0)
    again = is_left & ~t.is_searched & (has_hope | (t.theta <= 1e-6 * a))
    again &= ~t.ref.is_tied
    if t.peers.any(bool(again.any())):
        t.scan(again)
        t.certify()
        t.ref.is_tied |= again & t.is_left()
    if t.is_too_coarse():
        return False
    t.evaluated += t.search_uncertified()
    return True


def typical_drift(t: Tracked) -> float:
    """Median drift over all rows in units of the data, for the choice of the next lists."""
    known = torch.isfinite(t.ref.half) & torch.isfinite(t.ref.drift)
    drift = t.peers.concat(t.ref.drift[known])
    return float(drift.median()) / t.ref.frame.scale if len(drift) else 0.0


def _report(t: Tracked, is_changed: Bool[Tensor, " n"]) -> KnnReport:
    ref = t.ref
    ref.is_tied &= ~is_changed
    unit = ref.frame.scale
    tau = ref.reach() - ref.drift - t.theta
    loose = t.active & ~ref.certified & ~t.is_settled
    bound = (t.distances[loose, -1] * unit / tau[loose]).amax() if loose.any() else 1.0
    # Theorem C: members nearer than tau are true neighbours at their true rank.
    unproved = (t.distances[loose] * unit >= tau[loose, None]).sum()
    flags = (t.is_searched, is_changed, ref.certified, t.active)
    counts = [int(x.sum()) for x in flags] + [t.evaluated, int(unproved), int(loose.sum())]
    numbers = t.peers.all_sum(torch.tensor(counts)).tolist()
    searched, changed, certified, num_rows, distances, num_unproved, num_loose = numbers
    ref.scanned += searched if t.most_moved else 0
    return KnnReport(
        searched,
        changed,
        exact=num_loose == 0,
        recall=1.0 - num_unproved / max(1, num_rows * t.k),
        seconds=0.0,
        certified=certified,
        distances=distances,
        bound=max(1.0, t.peers.largest(float(bound))),
    )


def _motion_sample(dim: int) -> int:
    """Rows that tell a rotation of `dim` dimensions well enough; any motion is valid."""
    return max(MOTION_SAMPLE, min(4 * MOTION_SAMPLE, 8 * dim))


def _is_sampled(peers: Peers, size: int, device: torch.device) -> Bool[Tensor, " n"]:
    """A set of about `size` nodes that does not depend on the shards."""
    start, stop = peers.partition.span(peers.rank)
    stride = max(1, peers.partition.num_nodes // size)
    return torch.arange(start, stop, device=device) % stride == 0
