"""Lists with a horizon on a device, in plain torch operations; `lists` says what each does.

Arrays of one number per pair of a row and a list member are held for `PAIR_NUMBERS` numbers of row
data at once (128 MB in float64, and as much again twice while they are summed). Where the host
must wait for the device is said in `offers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Float32, Float64, Int32, Int64
from torch import Tensor

from . import offers
from .host_rows import blocks, parts, place
from .list_types import Framed, Hits, Lists, Partial, Ranking, empty_partial
from .merge import merge_topk
from .offers import Offers, block_keys, merge_dense, order_keys, packed, pieces, products_in
from .rows import canonical_distances

# Numbers of the rows of listed pairs that are held at once.
PAIR_NUMBERS = 1 << 24
# Rows of a shard that are looked at together.
ROWS = 1 << 18


def search_self(framed: Framed, size: int, *, budget: int | None = None) -> Partial:
    """See `lists.search_self`; every two blocks of rows are multiplied once.

    Args:
        budget: Bytes of the device's memory for rows, see `host_rows`; lists must fit beside them.
    """
    found = empty_partial(len(framed.ids), size, framed.half.device)
    framed = place(framed, budget)
    ranges = parts(framed, budget)
    order = [part for i in range(len(ranges)) for part in ranges[i:]]
    coming = blocks(framed, order, budget)
    mine, theirs = Offers(found), Offers(found)
    with products_in(framed.precision, framed.half.device):
        for i, a in enumerate(ranges):
            first = next(coming)
            _join(first, a, mine)
            for b in ranges[i + 1 :]:
                _join_pair(first, a, next(coming), b, mine, theirs)
            mine.flush()
        theirs.flush()
    return found


def _join(rows: Framed, at: slice, own: Offers) -> None:
    """Offer the rows of one range to each other."""
    ranges = _block_ranges(rows)
    for number, a in enumerate(ranges):
        part = rows.part(a)
        own.offer(block_keys(part, part), _shift(a, at), part.ids, part.ids)
        for b in ranges[number + 1 :]:
            _join_block(part, _shift(a, at), rows.part(b), _shift(b, at), own, own)


def _join_pair(a: Framed, at_a: slice, b: Framed, at_b: slice, to_a: Offers, to_b: Offers) -> None:
    for rows in _block_ranges(a):
        part = a.part(rows)
        for columns in _block_ranges(b):
            other = b.part(columns)
            _join_block(part, _shift(rows, at_a), other, _shift(columns, at_b), to_a, to_b)


def _join_block(a: Framed, at_a: slice, b: Framed, at_b: slice, to_a: Offers, to_b: Offers) -> None:
    keys = block_keys(a, b)
    to_a.offer(keys, at_a, a.ids, b.ids)
    to_b.offer(keys, at_b, b.ids, a.ids, dim=1)


def scan(
    queries: Framed,
    bank: Framed,
    found: Partial,
    limits: Float32[Tensor, " n"] | None,
    *,
    budget: int | None = None,
) -> Hits:
    """See `lists.scan`. Of `budget` see `search_self`; the queries must fit beside it."""
    device = queries.half.device
    hits = [_no_hits(device)]
    if not len(queries.ids):
        return hits[0]
    bank = place(bank, budget)
    ranges = parts(bank, budget)
    mine = Offers(found)
    with products_in(bank.precision, device):
        for at, rows in zip(ranges, blocks(bank, ranges, budget)):
            for columns in _block_ranges(rows):
                other, there = rows.part(columns), _shift(columns, at)
                for own in _block_ranges(queries):
                    part = queries.part(own)
                    keys = block_keys(part, other)
                    mine.offer(keys, own, part.ids, other.ids)
                    if limits is not None:
                        hits += _hits_within(keys, part, other, there, limits[there])
        mine.flush()
    return Hits(
        torch.cat([h.rows for h in hits]),
        torch.cat([h.nodes for h in hits]),
        torch.cat([h.keys for h in hits]),
    )


def _hits_within(
    keys: Float32[Tensor, "p q"],
    queries: Framed,
    bank: Framed,
    at: slice,
    limits: Float32[Tensor, " q"],
) -> Iterator[Hits]:
    """Bank rows that have a query within their limit."""
    near = keys < torch.where(torch.isfinite(bank.half), limits, -torch.inf)
    for row, column in pieces(near, near.numel() // offers.CROWDED):
        nodes = queries.ids[row]
        is_other = nodes != bank.ids[column]
        row, column, nodes = row[is_other], column[is_other], nodes[is_other]
        yield Hits((column + at.start).to(torch.int32), nodes, keys[row, column])


def scan_both(a: Framed, lists_a: Partial, b: Framed, lists_b: Partial) -> None:
    """See `lists.scan_both`."""
    to_a, to_b = Offers(lists_a), Offers(lists_b)
    with products_in(a.precision, a.half.device):
        _join_pair(a, slice(0, len(a.ids)), b, slice(0, len(b.ids)), to_a, to_b)
    to_a.flush()
    to_b.flush()


def merge_partial(lists: Partial, other: Partial) -> None:
    """See `lists.merge_partial`."""
    for part in _ranges(lists.keys.shape[0], ROWS):
        keys = torch.where(other.nodes[part] < 0, torch.inf, other.keys[part])
        merge_dense(Partial(lists.keys[part], lists.nodes[part]), keys, other.nodes[part])


def differing_rows(a: Float32[Tensor, "n D"], b: Float32[Tensor, "n D"]) -> Bool[Tensor, " n"]:
    """See `lists.differing_rows`."""
    return _by_range(a.shape[0], a.device, torch.bool, lambda s: (a[s] != b[s]).any(1))


def touched_rows(lists: Lists, is_changed: Bool[Tensor, " N"]) -> Bool[Tensor, " n"]:
    """See `lists.touched_rows`."""
    ids = lists.ids
    return _by_range(
        ids.shape[0], ids.device, torch.bool, lambda s: _flagged(ids[s], is_changed).any(1)
    )


def drop_members(lists: Lists, is_dropped: Bool[Tensor, " N"]) -> None:
    """See `lists.drop_members`."""
    for start in range(0, lists.ids.shape[0], ROWS):
        is_gone = _flagged(lists.ids[start : start + ROWS], is_dropped)
        at = is_gone.any(1).nonzero()[:, 0]
        keys = lists.keys[start + at].masked_fill(is_gone[at], torch.inf)
        ids = lists.ids[start + at].masked_fill(is_gone[at], -1)
        lists.keys[start + at], slots = keys.sort(stable=True, dim=1)
        lists.ids[start + at] = ids.gather(1, slots)


def admit(lists: Lists, hits: Hits, errors: Float32[Tensor, " n"]) -> None:
    """See `lists.admit`."""
    rows = hits.rows.to(torch.int64)
    is_near = hits.keys - errors[rows] < lists.horizon[rows]
    rows, nodes, keys = rows[is_near], hits.nodes[is_near], hits.keys[is_near]
    # One place more than a list has: who does not fit into it is not the nearest that is evicted.
    size = lists.size
    for own, (new_keys, new_nodes) in packed(rows, order_keys(keys), size + 1, (keys, nodes)):
        both, slots = torch.cat([lists.keys[own], new_keys], 1).sort(stable=True, dim=1)
        ids = torch.cat([lists.ids[own], new_nodes], 1).gather(1, slots)
        lists.keys[own], lists.ids[own] = both[:, :size], ids[:, :size]
        lists.horizon[own] = torch.minimum(lists.horizon[own], both[:, size] - errors[own])


def rank_lists(
    lists: Lists,
    own: Int64[Tensor, " m"],
    rows: Float32[Tensor, "n D"],
    drift: Float64[Tensor, " n"],
    members: Ranking,
    found: Int64[Tensor, "m k"],
    distances: Float64[Tensor, "m k"],
) -> int:
    """See `lists.rank_lists`; what rows have had before is not made use of.

    The first k members of a list bound the k-th distance; of the others only those are looked at
    that their reference's distance and the drifts do not exclude.
    """
    k, size = found.shape[1], lists.size
    # Where all lists are empty there may be no members at all.
    member_drift = members.drift if len(members.drift) else drift.new_zeros(1)
    evaluated = 0
    step = max(1, PAIR_NUMBERS // max(1, min(k, size) * rows.shape[1]))
    for part in _ranges(len(own), min(step, ROWS)):
        at = own[part]
        ids, keys, places = lists.ids[at], lists.keys[at], members.positions[part]
        pairs = torch.full(ids.shape, torch.inf, dtype=torch.float64, device=ids.device)
        is_first = ids >= 0
        is_first[:, k:] = False
        _measure(pairs, is_first, at, places, rows, members.bank)
        worst = pairs[:, :k].amax(1) if size >= k else pairs.new_full((len(at),), torch.inf)
        limit = worst * members.unit + drift[at]
        lower = (2.0 * (keys.to(torch.float64) - members.errors[part, None]).clamp(min=0)).sqrt()
        lower = members.stretch * lower * (1.0 - 1e-7) - member_drift[places.clamp(min=0)]
        is_near = (ids >= 0) & ~is_first & (lower <= limit[:, None])
        _measure(pairs, is_near, at, places, rows, members.bank)
        evaluated += int(is_first.count_nonzero() + is_near.count_nonzero())
        seen_ids = torch.where(is_first | is_near, ids, -1).to(torch.int64)
        found[part], distances[part] = merge_topk([seen_ids], [pairs], k)
    return evaluated


def rank_hits(
    hits: Hits,
    rows: Float32[Tensor, "n D"],
    bank: Float32[Tensor, "b D"],
    positions: Int64[Tensor, " h"],
    ids: Int64[Tensor, "n k"],
    distances: Float64[Tensor, "n k"],
) -> None:
    """See `lists.rank_hits`."""
    own, nodes = hits.rows.to(torch.int64), hits.nodes.to(torch.int64)
    is_new = torch.ones_like(own, dtype=torch.bool)
    for part in _ranges(len(own), ROWS):
        is_new[part] = (ids[own[part]] != nodes[part, None]).all(1)
    own, nodes, positions = own[is_new], nodes[is_new], positions[is_new]
    found = pair_distances(rows, own, bank, positions)
    order = torch.empty_like(own)
    by_node = nodes.argsort()
    ranked = by_node[found[by_node].argsort(stable=True)]
    order[ranked] = torch.arange(len(own), device=own.device)
    for at, (near, who) in packed(own, order, ids.shape[1], (found, nodes)):
        k = ids.shape[1]
        ids[at], distances[at] = merge_topk([ids[at], who], [distances[at], near], k)


def drift_of(
    rows: Float32[Tensor, "n D"],
    reference: Float32[Tensor, "n D"],
    scale: float,
    center: Float32[Tensor, " D"],
) -> Float64[Tensor, " n"]:
    """See `lists.drift_of`."""
    middle = center.to(torch.float64)

    def measure(s: slice) -> Tensor:
        framed = rows[s].to(torch.float64) * scale - middle
        gap: Tensor = torch.linalg.vector_norm(framed - reference[s], dim=1)
        return gap

    step = max(1, PAIR_NUMBERS // max(1, rows.shape[1]))
    return _by_range(rows.shape[0], rows.device, torch.float64, measure, step)


def _measure(
    out: Float64[Tensor, "m K"],
    is_asked: Bool[Tensor, "m K"],
    own: Int64[Tensor, " m"],
    places: Int32[Tensor, "m K"],
    rows: Float32[Tensor, "n D"],
    bank: Float32[Tensor, "b D"],
) -> None:
    """Write the canonical distances of the pairs that are asked for."""
    at, column = is_asked.nonzero(as_tuple=True)
    out[at, column] = pair_distances(rows, own[at], bank, places[at, column].to(torch.int64))


def pair_distances(
    rows: Float32[Tensor, "n D"],
    at: Int64[Tensor, " h"],
    bank: Float32[Tensor, "b D"],
    places: Int64[Tensor, " h"],
) -> Float64[Tensor, " h"]:
    """Canonical distances of listed pairs."""
    step = max(1, PAIR_NUMBERS // max(1, rows.shape[1]))
    return _by_range(
        len(at),
        rows.device,
        torch.float64,
        lambda s: canonical_distances(rows[at[s]], bank[places[s]]),
        step,
    )


def _by_range(
    count: int,
    device: torch.device,
    dtype: torch.dtype,
    call: Callable[[slice], Tensor],
    step: int = ROWS,
) -> Tensor:
    """One number per row, computed for so many rows at once."""
    out = torch.empty(count, dtype=dtype, device=device)
    for part in _ranges(count, step):
        out[part] = call(part)
    return out


def _flagged(ids: Int32[Tensor, "m K"], flags: Bool[Tensor, " N"]) -> Bool[Tensor, "m K"]:
    """Members whose flag is set."""
    return flags[ids.clamp(min=0)] & (ids >= 0)


def _no_hits(device: torch.device) -> Hits:
    none = torch.empty(0, dtype=torch.int32, device=device)
    return Hits(none, none, torch.empty(0, device=device))


def _block_ranges(rows: Framed) -> list[slice]:
    return _ranges(rows.rows.shape[0], offers.BLOCK)


def _ranges(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _shift(part: slice, by: slice) -> slice:
    return slice(part.start + by.start, part.stop + by.start)
