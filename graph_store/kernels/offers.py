"""Lists of the nearest, filled block by block on a device in plain torch operations.

A block of keys is compared with the last key of each list; only what is nearer (a hit) is looked
at again. Hits of many blocks wait, and then are merged into their lists in one sort: a `topk` of
every block would cost more than its products. Last keys only fall, so a stale one is a valid bound
that lets a few more through. Where a block has too many hits, as at the start where lists are
empty, its own nearest are merged instead.

Memory beside the lists: a block of `BLOCK`^2 keys with its mask and hits (about 10 bytes per key,
0.7 GB), and about 40 bytes per waiting hit, of which there are at most `HITS_PER_ROW` per row (or
`LEAST_HITS`) and one block's. The host waits for the device once per block and side: for the
number of hits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import pairwise

import torch
from jaxtyping import Bool, Float32, Int32, Int64
from torch import Tensor

from .list_types import Framed, Partial
from .precision import exact_products, tf32_products
from .rounding import Precision

# Rows on either side of a block.
BLOCK = 8192
# A block with more hits than one in so many keys is merged by its nearest.
CROWDED = 16
HITS_PER_ROW = 8
LEAST_HITS = 1 << 18
# Lists that are merged at once.
MERGED_ROWS = 1 << 18


def products_in(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """The context in which `block_keys` of such rows are as exact as they are said to be."""
    return tf32_products(device) if precision == "tf32" else exact_products(device)


def block_keys(a: Framed, b: Framed) -> Float32[Tensor, "p q"]:
    """Half squared distances |x|^2/2 + |y|^2/2 - xy of all pairs; inf for rows without part."""
    if a.rows.dtype == torch.float32:
        keys = torch.addmm(b.half, a.rows, b.rows.T, alpha=-1)
    else:
        keys = products(a, b)
        torch.add(b.half, keys, alpha=-a.unit * b.unit, out=keys)
    return keys.add_(a.half[:, None])


def products(a: Framed, b: Framed) -> Float32[Tensor, "p q"]:
    """Products of the rows as they are stored, summed in float32.

    By tensor cores for lower precisions; of widened rows where there are none.
    """
    rows, columns = a.rows, b.rows
    if rows.dtype == torch.float32:
        return rows @ columns.T
    if rows.device.type != "cuda":
        return rows.to(torch.float32) @ columns.to(torch.float32).T
    if rows.dtype == torch.int8:  # whole numbers below 2^11 are exact in float16
        rows, columns = rows.to(torch.float16), columns.to(torch.float16)
    return torch.mm(rows, columns.T, out_dtype=torch.float32)


class Offers:
    """Hits that wait to be merged into lists; `flush` at the end."""

    def __init__(self, lists: Partial) -> None:
        self._lists = lists
        self._waiting: list[tuple[Tensor, Tensor, Tensor]] = []
        self._count = 0
        self._room = max(LEAST_HITS, HITS_PER_ROW * lists.keys.shape[0])

    def offer(
        self,
        keys: Float32[Tensor, "p q"],
        own: slice,
        own_ids: Int32[Tensor, " _"],
        other_ids: Int32[Tensor, " _"],
        dim: int = 0,
    ) -> None:
        """Offer the other side of a block of keys to the lists `own`, which run along `dim`.

        A node is not offered to itself. A pair must not be offered twice. `keys` may be changed
        where both sides are the same node.
        """
        bounds = self._lists.keys[own, -1]
        near = keys < (bounds[:, None] if dim == 0 else bounds)
        count = int(near.count_nonzero())
        if count > keys.numel() // CROWDED:
            self._offer_nearest(keys if dim == 0 else keys.T, own, own_ids, other_ids)
        elif count:
            at = torch.nonzero_static(near, size=count).T
            rows, others = at[dim], at[1 - dim]
            nodes = other_ids[others]
            values = torch.where(own_ids[rows] == nodes, torch.inf, keys[at[0], at[1]])
            self._waiting.append((rows + own.start, nodes, values))
            self._count += count
            if self._count > self._room:
                self.flush()

    def flush(self) -> None:
        """Merge what waits."""
        if self._waiting:
            rows, nodes, keys = (torch.cat(column) for column in zip(*self._waiting))
            self._waiting, self._count = [], 0
            merge_hits(self._lists, rows, nodes, keys)

    def _offer_nearest(
        self,
        keys: Float32[Tensor, "p q"],
        own: slice,
        own_ids: Int32[Tensor, " p"],
        other_ids: Int32[Tensor, " q"],
    ) -> None:
        keys.masked_fill_(own_ids[:, None] == other_ids, torch.inf)
        width = min(self._lists.keys.shape[1], keys.shape[1])
        best = keys.topk(width, dim=1, largest=False)
        merge_dense(
            Partial(self._lists.keys[own], self._lists.nodes[own]),
            best.values,
            other_ids[best.indices],
        )


def merge_dense(lists: Partial, keys: Float32[Tensor, "m c"], nodes: Int32[Tensor, "m c"]) -> None:
    """Put c candidates for each list into the lists; those with key inf are nobody."""
    width = lists.keys.shape[1]
    both, slots = torch.cat([lists.keys, keys], 1).sort(1)
    nodes = torch.cat([lists.nodes, nodes], 1).gather(1, slots[:, :width])
    lists.keys.copy_(both[:, :width])
    lists.nodes.copy_(torch.where(torch.isinf(lists.keys), -1, nodes))


def merge_hits(
    lists: Partial,
    rows: Int64[Tensor, " h"],
    nodes: Int32[Tensor, " h"],
    keys: Float32[Tensor, " h"],
) -> None:
    """Put hits into the lists of their rows."""
    width = lists.keys.shape[1]
    for own, (new_keys, new_nodes) in packed(rows, order_keys(keys), width, (keys, nodes)):
        part = Partial(lists.keys[own], lists.nodes[own])
        merge_dense(part, new_keys, new_nodes)
        lists.keys[own], lists.nodes[own] = part.keys, part.nodes


def order_keys(keys: Float32[Tensor, " h"]) -> Int64[Tensor, " h"]:
    """Whole numbers of 0..2^32-1 in the order of the keys."""
    bits = keys.view(torch.int32).to(torch.int64)
    return torch.where(bits < 0, -1 - bits, bits + (1 << 31))


def packed(
    rows: Int64[Tensor, " h"],
    order: Int64[Tensor, " h"],
    width: int,
    columns: Sequence[Tensor],
) -> Iterator[tuple[Int64[Tensor, " m"], list[Tensor]]]:
    """The first `width` entries of every row that has any, as a matrix per column.

    Args:
        order: Entries of a row are ordered by this, 0..2^32-1.
        columns: Floats, padded with inf, and ids, padded with -1.

    Yields:
        Rows, at most `MERGED_ROWS` at once, and their matrices.
    """
    if not len(rows):
        return
    by_row = torch.add(order, rows << 32).argsort()
    rows = rows[by_row]
    owners, counts = torch.unique_consecutive(rows, return_counts=True)
    stops = counts.cumsum(0)
    which = torch.repeat_interleave(counts, output_size=len(rows))
    slots = torch.arange(len(rows), device=rows.device) - (stops - counts)[which]
    width = min(width, int(counts.max()))
    slots.clamp_(max=width)  # the rest shares a place that is cut off
    cuts = [0, *stops[MERGED_ROWS - 1 :: MERGED_ROWS].tolist(), len(rows)]
    for number, (start, stop) in enumerate(pairwise(cuts)):
        if start == stop:
            continue
        own = owners[number * MERGED_ROWS : (number + 1) * MERGED_ROWS]
        place = (which[start:stop] - number * MERGED_ROWS, slots[start:stop])
        matrices = []
        for column in columns:
            fill = torch.inf if column.is_floating_point() else -1
            matrix = column.new_full((len(own), width + 1), fill)
            matrix[place] = column[by_row[start:stop]]
            matrices.append(matrix[:, :width])
        yield own, matrices


def pieces(
    near: Bool[Tensor, "p q"], most: int
) -> Iterator[tuple[Int64[Tensor, " h"], Int64[Tensor, " h"]]]:
    """Rows and columns of the hits, in parts of at most `most` (or one row's)."""
    count = int(near.count_nonzero())
    if count > most and near.shape[0] > 1:
        half = near.shape[0] // 2
        yield from pieces(near[:half], most)
        for rows, columns in pieces(near[half:], most):
            yield rows + half, columns
    elif count:
        at = torch.nonzero_static(near, size=count)
        yield at[:, 0], at[:, 1]
