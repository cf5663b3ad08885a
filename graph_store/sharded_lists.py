"""Lists of references over all shards: rows travel, and every product serves both of its rows.

Keys of one pair may differ in their last bits from shard to shard; horizons allow for that, and
who is a neighbour is decided by canonical distances later. So the result does not depend on shards.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from .kernels.lists import Framed, Hits, Partial, merge_partial, scan, scan_both, search_self
from .peers import BLOCK, Peers

# Up to this share of moved rows, a copy of the others costs more than products that serve one row.
SMALL_SHARE = 0.08
# Hits that the queries scanned first can have at most, how many these are at least, and how many
# may be scanned at once later. Rows that have come into the reach of very many, as all that
# collapse into one place, would else be hit by all; the first hits lower their horizons.
MOST_HITS = 1 << 25
LEAST_SCAN = 1 << 5
LARGEST_SCAN = 1 << 13


def search_over_shards(peers: Peers, own: Framed, size: int, block: int = BLOCK) -> Partial:
    """Nearest references of the own rows among those of all shards, `size` + 1. Collective.

    Every two shards share their pairs: of shards a < b, a takes the products with the first half
    of b's rows, and b those of a's rows with its second half. A shard returns what it has found
    for the other's rows, which came with their last keys, so that only what is nearer is kept.

    Cost:
        Half of all products; every shard receives three quarters of the others' rows on average,
        and as many lists of `size` + 1.
    """
    found = search_self(own, size)
    if peers.group is None:
        return found
    counts = peers.counts(len(own.ids))
    for partners in _rounds(peers.size):
        trades = [_trade(partners, counts, rank) for rank in range(peers.size)]
        trade = trades[peers.rank]
        for start in range(0, max(each.sent for each in trades), block):
            mine = slice(min(start, trade.sent), min(start + block, trade.sent))
            theirs = max(0, min(block, trade.received - start))
            _exchange_block(peers, own, found, trade, mine, theirs)
    return found


def scan_over_shards(
    peers: Peers,
    own: Framed,
    moved: Int64[Tensor, " m"],
    limits: Callable[[], Float32[Tensor, " n"]],
    found: Partial,
    offer: Callable[[Hits, int], None],
) -> None:
    """Scan the moved references of all shards over the rows of all shards. Collective.

    Args:
        own: References of the own rows.
        moved: Which of them have moved.
        limits: Gives them as in `scan`, as they are by then; -inf for those that have moved.
        found: Receives the lists of the own moved rows.
        offer: Takes hits among the own rows (their own row, the query, and its key), some at a
            time, with the shard that owns the queries, and by that may lower the limits.
            Collective: every shard calls it as often.
    """
    queries = own.take(moved)
    bank, places = own, None
    if len(moved) > SMALL_SHARE * len(own.ids):
        # Among themselves each product serves both rows; the others are made contiguous.
        among = search_self(queries, found.keys.shape[1] - 1)
        found.keys.copy_(among.keys)
        found.nodes.copy_(among.nodes)
        places = (limits() > -torch.inf).nonzero()[:, 0]
        bank = own.take(places)
    first = max(LEAST_SCAN, MOST_HITS // peers.partition.num_nodes)
    blocks = peers.blocks(queries.rows, queries.half, queries.ids, block=LARGEST_SCAN, first=first)
    for root, part, (rows, half, ids) in blocks:
        block = replace(queries, rows=rows, half=half, ids=ids)
        is_own = root == peers.rank
        lists = Partial(found.keys[part], found.nodes[part]) if is_own else _like(found, len(ids))
        if places is None:
            offer(scan(block, bank, lists, limits()), root)
        else:
            hits = scan(block, bank, lists, limits()[places])
            at = places[hits.rows.to(torch.int64)].to(torch.int32)
            offer(replace(hits, rows=at), root)
        if not is_own and places is not None:
            scan(block, queries, lists, None)
        if peers.group is None:
            continue
        parts = peers.collect(lists.keys, root), peers.collect(lists.nodes, root)
        if is_own:
            for shard, (keys, nodes) in enumerate(zip(*parts)):
                if shard != root:
                    merge_partial(lists, Partial(keys, nodes))


@dataclass(frozen=True)
class _Trade:
    """What a shard sends to its partner, gets from it, and which own rows it multiplies with that.

    The first `sent` of the own rows are sent.
    """

    partner: int
    sent: int
    received: int
    multiplied: slice


def _trade(partners: list[int], counts: list[int], rank: int) -> _Trade:
    """The lower shard gives all its rows for the first half of the other's, who keeps the second.

    So each pair of rows is multiplied by one of them.
    """
    partner, own = partners[rank], counts[rank]
    if partner == rank:
        return _Trade(partner, 0, 0, slice(0, 0))
    other = counts[partner]
    if rank < partner:
        return _Trade(partner, own, other // 2, slice(0, own))
    return _Trade(partner, own // 2, other, slice(own // 2, own))


def _exchange_block(
    peers: Peers, own: Framed, found: Partial, trade: _Trade, mine: slice, theirs: int
) -> None:
    """Send a block of rows to the partner, multiply the one that came, and swap the lists."""
    there = partial(_swap, peers, trade.partner, receive=theirs)
    rows = there(own.rows[mine])
    half = there(own.half[mine])
    ids = there(own.ids[mine])
    last = there(found.keys[mine, -1])
    width = found.keys.shape[1]
    nobody = found.nodes.new_full((theirs, width), -1)
    lists = Partial(last[:, None].repeat(1, width), nobody)
    part = trade.multiplied
    scan_both(
        own.part(part),
        Partial(found.keys[part], found.nodes[part]),
        replace(own, rows=rows, half=half, ids=ids),
        lists,
    )
    back = partial(_swap, peers, trade.partner, receive=mine.stop - mine.start)
    keys, nodes = back(lists.keys), back(lists.nodes)
    merge_partial(Partial(found.keys[mine], found.nodes[mine]), Partial(keys, nodes))


def _swap(peers: Peers, partner: int, rows: Tensor, *, receive: int) -> Tensor:
    """Rows of the partner for rows of this shard; with oneself there is nothing to swap."""
    assert peers.group is not None
    counts = [len(rows), receive]
    send, get = ([n if r == partner else 0 for r in range(peers.size)] for n in counts)
    return peers.group.exchange(rows, send, get, few=True)


def _rounds(num_shards: int) -> Iterator[list[int]]:
    """Rounds in which every two shards are partners once; oneself where there is nobody."""
    seats = list(range(num_shards + num_shards % 2))
    half = len(seats) // 2
    for _ in range(len(seats) - 1):
        partners = list(range(num_shards))
        for a, b in zip(seats[:half], reversed(seats[half:])):
            if max(a, b) < num_shards:
                partners[a], partners[b] = b, a
        yield partners
        seats.insert(1, seats.pop())


def _like(found: Partial, num_rows: int) -> Partial:
    width = found.keys.shape[1]
    return Partial(
        found.keys.new_full((num_rows, width), torch.inf),
        found.nodes.new_full((num_rows, width), -1),
    )
