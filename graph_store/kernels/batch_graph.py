"""The undirected edges of a small kNN graph, and sums over them: no n x n array, no atomics.

Edges are numbered by (lower row, higher row), and every sum over the edges of a row is taken in the
order of the neighbours' numbers, so results depend neither on threads nor on chance. Compiled loops
serve the CPU, plain torch operations everything else.

Shape letters: n rows of the batch, k neighbours, e edges, m = 2e entries, C columns.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, Int64
from numpy.typing import NDArray
from torch import Tensor

from .compiled import compiled, for_each_range, split_rows

# Numbers per temporary array where sums are made of torch operations.
_BUFFER_NUMBERS = 1 << 24
# Steps along edges between two looks whether more rows were found, on a device.
_HOPS = 8

I64 = NDArray[np.int64]
F64 = NDArray[np.float64]


@dataclass(frozen=True)
class BatchGraph:
    """Two rows are joined if either lists the other.

    Attributes:
        first, second: Ends of each edge, first < second, in ascending order.
        offsets: Row i has the entries offsets[i] .. offsets[i+1]-1 of `cols` and `edges`.
        cols: The neighbours of each row, ascending.
        edges: The edge that leads there.
        listed: The edge to each neighbour that the row itself lists, nearest first.
    """

    first: Int64[Tensor, " e"]
    second: Int64[Tensor, " e"]
    offsets: Int64[Tensor, " n1"]
    cols: Int64[Tensor, " m"]
    edges: Int64[Tensor, " m"]
    listed: Int64[Tensor, "n k"]

    @property
    def num_rows(self) -> int:
        return self.listed.shape[0]

    @property
    def rows(self) -> Int64[Tensor, " m"]:
        """Row of each entry."""
        own = torch.arange(self.num_rows, device=self.cols.device)
        return own.repeat_interleave(self.offsets.diff(), output_size=self.cols.shape[0])

    def per_edge(self, of_listed: Float[Tensor, "n k"]) -> Float[Tensor, " e"]:
        """One value per edge, of values that are the same in both rows' lists."""
        values = of_listed.new_empty(self.first.shape)
        values[self.listed] = of_listed
        return values


def connect(neighbor_ids: Int64[Tensor, "n k"]) -> BatchGraph:
    """The union of all lists; no row may list itself, or another one twice."""
    if neighbor_ids.device.type != "cpu":
        return _connect_by_sorting(neighbor_ids)
    ids = neighbor_ids.contiguous().numpy()
    offsets = np.zeros(ids.shape[0] + 1, np.int64)
    _count_entries(ids, offsets)
    cols, edges = (np.empty(offsets[-1], np.int64) for _ in range(2))
    first, second = (np.empty(offsets[-1] // 2, np.int64) for _ in range(2))
    listed = np.empty_like(ids)
    _fill(ids, offsets, cols, edges, first, second, listed)
    return BatchGraph(
        torch.from_numpy(first),
        torch.from_numpy(second),
        torch.from_numpy(offsets),
        torch.from_numpy(cols),
        torch.from_numpy(edges),
        torch.from_numpy(listed),
    )


def _connect_by_sorting(ids: Int64[Tensor, "n k"]) -> BatchGraph:
    num_rows = ids.shape[0]
    own = torch.arange(num_rows, device=ids.device)[:, None]
    places, listed = torch.unique(
        torch.minimum(ids, own) * num_rows + torch.maximum(ids, own), return_inverse=True
    )
    first, second = places.div(num_rows, rounding_mode="floor"), places.remainder(num_rows)
    rows, cols = torch.cat([first, second]), torch.cat([second, first])
    order = (rows * num_rows + cols).argsort()
    offsets = torch.searchsorted(rows[order], torch.arange(num_rows + 1, device=ids.device))
    edges = order.remainder(max(1, places.shape[0]))
    return BatchGraph(first, second, offsets, cols[order], edges, listed)


def incident_sums(graph: BatchGraph, values: Float64[Tensor, "e *C"]) -> Float64[Tensor, "n *C"]:
    """Sum of the values of each row's edges; of weights, the degrees."""
    wide = values.reshape(values.shape[0], -1).contiguous()
    if values.device.type != "cpu":
        out = segment_sums(wide[graph.edges], graph.offsets)
    else:
        out = wide.new_zeros(graph.num_rows, wide.shape[1])
        _sum_incident(graph.offsets.numpy(), graph.edges.numpy(), wide.numpy(), out.numpy())
    return out.reshape(-1, *values.shape[1:])


def laplacian(
    graph: BatchGraph,
    weights: Float64[Tensor, "e c"],
    f: Float[Tensor, "n C"],
) -> Float64[Tensor, "n C"]:
    """sum_j w_ij (f_i - f_j) for every row i, in float64.

    Args:
        weights: One column for all columns of `f`, or one for each.
    """
    out = torch.empty(f.shape, dtype=torch.float64, device=f.device)
    if f.device.type != "cpu":
        step = max(1, _BUFFER_NUMBERS // max(1, graph.cols.shape[0]))
        for start in range(0, f.shape[1], step):
            part = slice(start, start + step)
            w = weights if weights.shape[1] == 1 else weights[:, part]
            column = f[:, part].to(torch.float64)
            flow = w[graph.edges] * (column[graph.rows] - column[graph.cols])
            out[:, part] = segment_sums(flow, graph.offsets)
        return out
    offsets, cols, edges = graph.offsets.numpy(), graph.cols.numpy(), graph.edges.numpy()
    shared_or_not, given, sums = weights.contiguous().numpy(), f.contiguous().numpy(), out.numpy()

    def run(start: int, stop: int) -> None:
        _sum_differences(offsets, cols, edges, shared_or_not, given, sums, start, stop)

    for_each_range(run, split_rows(graph.num_rows, graph.cols.shape[0] * f.shape[1], 2_000_000))
    return out


def edge_products(
    graph: BatchGraph, a: Float64[Tensor, "n C"], b: Float64[Tensor, "n C"]
) -> Float64[Tensor, " e"]:
    """sum_c (a_ic - a_jc) (b_ic - b_jc) of every edge ij."""
    if a.device.type != "cpu":
        i, j = graph.first, graph.second
        return ((a[i] - a[j]) * (b[i] - b[j])).sum(1)
    out = a.new_empty(graph.first.shape)
    _multiply_differences(
        graph.first.numpy(), graph.second.numpy(), a.numpy(), b.numpy(), out.numpy()
    )
    return out


def reachable(
    graph: BatchGraph, weights: Float64[Tensor, " e"], start: Bool[Tensor, " n"]
) -> Bool[Tensor, " n"]:
    """Rows that a path of positive weights connects to a row of `start`, these included."""
    if start.device.type == "cpu":
        found = start.clone()
        entries = graph.offsets.numpy(), graph.cols.numpy(), graph.edges.numpy()
        _spread(*entries, weights.numpy(), found.numpy())
        return found
    found, is_open = start, weights > 0
    while True:
        grown = found
        for _ in range(_HOPS):
            touched = (grown[graph.first] | grown[graph.second]) & is_open
            grown = grown | (incident_sums(graph, touched.to(torch.float64)) > 0)
        if torch.equal(grown, found):
            return grown
        found = grown


def segment_sums(
    values: Float64[Tensor, "m C"], offsets: Int64[Tensor, " n1"]
) -> Float64[Tensor, "n C"]:
    """Sums of consecutive rows, each in order by a thread of its own: the same bits every time."""
    return torch.segment_reduce(values, "sum", offsets=offsets, axis=0, unsafe=True, initial=0)


@compiled
def _count_entries(ids: I64, offsets: I64) -> None:
    """Number of edges of each row, summed up."""
    num_rows, num_slots = ids.shape
    ends, listers = _transpose(ids)
    marks = np.full(num_rows, -1)
    for i in range(num_rows):
        offsets[i + 1] = offsets[i] + num_slots
        for slot in range(num_slots):
            marks[ids[i, slot]] = i
        for entry in range(ends[i], ends[i + 1]):
            offsets[i + 1] += marks[listers[entry]] != i


@compiled
def _transpose(ids: I64) -> tuple[I64, I64]:
    """For every row the rows that list it: offsets and, ascending, their numbers."""
    num_rows, num_slots = ids.shape
    ends = np.zeros(num_rows + 2, np.int64)
    for i in range(num_rows):
        for slot in range(num_slots):
            ends[ids[i, slot] + 2] += 1
    for i in range(num_rows):
        ends[i + 2] += ends[i + 1]
    listers = np.empty(num_rows * num_slots, np.int64)
    for i in range(num_rows):
        for slot in range(num_slots):
            j = ids[i, slot] + 1
            listers[ends[j]] = i
            ends[j] += 1
    return ends[: num_rows + 1], listers


@compiled
def _fill(
    ids: I64, offsets: I64, cols: I64, edges: I64, first: I64, second: I64, listed: I64
) -> None:
    """All columns of a `BatchGraph`, given its offsets."""
    num_rows, num_slots = ids.shape
    ends, listers = _transpose(ids)
    unsorted, place = np.empty_like(cols), offsets[:num_rows].copy()
    marks = np.full(num_rows, -1)
    for i in range(num_rows):
        for slot in range(num_slots):
            unsorted[place[i] + slot] = ids[i, slot]
            marks[ids[i, slot]] = i
        place[i] += num_slots
        for entry in range(ends[i], ends[i + 1]):
            if marks[listers[entry]] != i:
                unsorted[place[i]] = listers[entry]
                place[i] += 1
    # Entered in the order of the neighbours, every row is sorted.
    place[:] = offsets[:num_rows]
    for j in range(num_rows):
        for entry in range(offsets[j], offsets[j + 1]):
            i = unsorted[entry]
            cols[place[i]] = j
            place[i] += 1
    # `place` now walks over each row's higher neighbours, which ask for their edge in order.
    num_edges = 0
    for i in range(num_rows):
        place[i] = -1
        for entry in range(offsets[i], offsets[i + 1]):
            j = cols[entry]
            if j < i:
                edges[entry] = edges[place[j]]
                place[j] += 1
                continue
            if place[i] < 0:
                place[i] = entry
            edges[entry], first[num_edges], second[num_edges] = num_edges, i, j
            num_edges += 1
    for i in range(num_rows):
        for entry in range(offsets[i], offsets[i + 1]):
            marks[cols[entry]] = edges[entry]
        for slot in range(num_slots):
            listed[i, slot] = marks[ids[i, slot]]


@compiled
def _sum_incident(offsets: I64, edges: I64, values: F64, out: F64) -> None:
    width = values.shape[1]
    for i in range(offsets.shape[0] - 1):
        total = out[i, :width]
        for entry in range(offsets[i], offsets[i + 1]):
            value = values[edges[entry], :width]
            for c in range(width):
                total[c] += value[c]


@compiled
def _sum_differences(
    offsets: I64,
    cols: I64,
    edges: I64,
    weights: F64,
    f: NDArray[np.floating],
    out: F64,
    start: int,
    stop: int,
) -> None:
    width, is_shared = f.shape[1], weights.shape[1] == 1
    for i in range(start, stop):
        total, own = out[i, :width], f[i, :width]
        total[:] = 0
        for entry in range(offsets[i], offsets[i + 1]):
            other, weight = f[cols[entry], :width], weights[edges[entry]]
            if is_shared:
                value = weight[0]
                for c in range(width):
                    total[c] += value * (np.float64(own[c]) - np.float64(other[c]))
            else:
                for c in range(width):
                    total[c] += weight[c] * (np.float64(own[c]) - np.float64(other[c]))


@compiled
def _multiply_differences(first: I64, second: I64, a: F64, b: F64, out: F64) -> None:
    for edge in range(first.shape[0]):
        i, j, total = first[edge], second[edge], 0.0
        for c in range(a.shape[1]):
            total += (a[i, c] - a[j, c]) * (b[i, c] - b[j, c])
        out[edge] = total


@compiled
def _spread(offsets: I64, cols: I64, edges: I64, weights: F64, found: NDArray[np.bool_]) -> None:
    """Breadth first from the rows that are found."""
    queue = np.empty(found.shape[0], np.int64)
    last = 0
    for i in range(found.shape[0]):
        if found[i]:
            queue[last] = i
            last += 1
    at = 0
    while at < last:
        i = queue[at]
        at += 1
        for entry in range(offsets[i], offsets[i + 1]):
            j = cols[entry]
            if not found[j] and weights[edges[entry]] > 0:
                found[j] = True
                queue[last] = j
                last += 1
