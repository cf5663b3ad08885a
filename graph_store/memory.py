"""What a store costs in memory, per node: the sum that `GraphStore.create` checks a cluster by.

Between rounds a shard holds two published rounds and what the next update of the graph needs. While
a round is put and its graph updated, it also holds what is put, the table that the puts are
written to (readers still see the old one) and the prepared rows of both rounds.
"""

from __future__ import annotations

from collections.abc import Mapping

from .slack import default_slack
from .store import StoreSpec

# Rows of blocks, hits and merges that an update holds for a while, as a share of the rest.
_SCRATCH = 0.1


def bytes_by_part(spec: StoreSpec) -> Mapping[str, int]:
    """Bytes per node between two rounds, after at least two of them, by what they are for."""
    stored = spec.dim * (2 if spec.dtype == "float16" else 4)
    row, k, classes = 4 * spec.dim, spec.k, spec.num_classes
    size = spec.slack or default_slack(k)
    is_followed = spec.update == "exact" and spec.backend in ("auto", "torch")
    return {
        "features of two rounds": 2 * stored,
        "prepared rows": row,
        "reference rows": row + 4 if is_followed else 0,
        "lists with horizon": 8 * size + 8 if is_followed else 0,
        "drifts and certificates": 11 if is_followed else 0,
        "neighbours, similarities, distances, densities of two rounds": 2 * (16 * k + 4),
        "distances in float64": 8 * k,
        "probabilities and labels": 2 * 4 * classes + 8 + 2,
        "pseudo-labels of two rounds": 2 * (4 * classes + 4),
        "what has moved": 1,
    }


def bytes_per_node(spec: StoreSpec) -> int:
    """Bytes per node between two rounds; `extra` columns of a method come on top."""
    return sum(bytes_by_part(spec).values())


def peak_bytes_per_node(spec: StoreSpec) -> int:
    """Bytes per node while a whole round is put and its graph updated."""
    stored = spec.dim * (2 if spec.dtype == "float16" else 4)
    coming = 2 * (stored + 4 * spec.num_classes) + 4 * spec.dim
    return int((1 + _SCRATCH) * (bytes_per_node(spec) + coming))


def weights_bytes(num_nodes: int, num_entries: int) -> int:
    """Bytes of an affinity; every edge is two entries, column and weight."""
    return 16 * num_entries + 16 * num_nodes


def solver_bytes(num_nodes: int, num_entries: int, num_classes: int, itemsize: int = 8) -> int:
    """Bytes that a linear solve takes at most beside the affinity, the result among them.

    The scaled weights once more with 32-bit columns, up to twelve blocks of columns (labels,
    sources, right-hand side, solution, residual, direction, image, their parts without converged
    columns, result) and what it keeps per node (order, groups, components, diagonal, scale).
    """
    blocks = 12 * itemsize * num_nodes * num_classes
    return (4 + itemsize) * num_entries + blocks + 96 * num_nodes


def check_memory(
    spec: StoreSpec, nodes_per_shard: int, num_shards: int, available: Mapping[str, float]
) -> None:
    """Refuse a store that the machines of a cluster cannot hold.

    Args:
        available: Bytes that each machine offers; machines that are not known are left out.

    Raises:
        ValueError: It needs more than all machines have together, or a shard more than any one.
    """
    if not available:
        return
    each = peak_bytes_per_node(spec) * nodes_per_shard
    total, largest = sum(available.values()), max(available.values())
    room = sum(int(free // each) for free in available.values())
    if room >= num_shards:
        return
    what = (
        f"a store of {spec.num_nodes:,} nodes (dim = {spec.dim}, k = {spec.k}, "
        f"{spec.num_classes} classes) takes {peak_bytes_per_node(spec):,} bytes per node at its "
        f"peak, {_size(float(each))} for each of {num_shards} shards"
    )
    if each * num_shards > total:
        advice = 'use dtype="float16", a smaller dim or k, or more machines'
    else:
        advice = "use more and smaller shards"
    raise ValueError(
        f"{what}; the cluster offers {_size(total)} on {len(available)} machines, at most "
        f"{_size(largest)} on one: {advice}"
    )


def _size(num_bytes: float) -> str:
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if num_bytes < 1024:
            return f"{num_bytes:.4g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:.4g} TiB"
