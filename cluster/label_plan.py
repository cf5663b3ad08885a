"""Where a labeling runs and how it finds neighbours: decided from sizes, before anything starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..graph_store.memory import peak_bytes_per_node
from ..graph_store.store import StoreSpec

SEARCHES = ("auto", "exact", "approximate")
# "auto" searches exactly up to this many products, rows x rows x width: 800,000 rows of width 32 or
# 160,000 of 768, some ten minutes of one core. It depends on no machine, so labels do not either.
EXACT_PRODUCTS = 2e13
# What a shard may hold where the number of shards is chosen here.
SHARD_BYTES = 4 << 30
# Most of the memory that is free; the rest is for what is not counted.
USABLE = 0.8
# Arrays of 8 bytes: per directed edge while weights are made symmetric, per class in a solve.
_EDGE_COLUMNS = 8
_SOLVE_COLUMNS = 10


@dataclass(frozen=True)
class Plan:
    """Attributes:
    num_shards: Of the store on Ray; 0: this process.
    is_exact: Whether neighbours are searched exactly, or refined until enough of them are found.
    where, search: Both choices in words.
    """

    num_shards: int
    is_exact: bool
    where: str
    search: str


def make_plan(
    spec: StoreSpec,
    *,
    shards: int | None = None,
    search: str = "auto",
    available: int | None = None,
) -> Plan:
    """Decide.

    Args:
        spec: Shape of the store that could hold the rows.
        shards: As asked for; None: shards only where one process has too little memory.
        search: One of SEARCHES.
        available: Bytes of memory that this process may take; None: unknown.

    Raises:
        ValueError: shards < 1, or no such search.
    """
    if search not in SEARCHES:
        raise ValueError(f"search = {search!r}: known are {', '.join(SEARCHES)}")
    if shards is not None and shards < 1:
        raise ValueError(f"shards = {shards} must be at least 1; leave it out for one process")
    num_shards, where = _where(spec, shards, available)
    if search != "auto":
        return Plan(num_shards, search == "exact", where, f"{search} (as asked)")
    is_exact = spec.num_nodes**2 * spec.dim <= EXACT_PRODUCTS
    size = f"{spec.num_nodes:,} rows of width {spec.dim}"
    why = f"exact ({size} are few enough)" if is_exact else f"approximate ({size} are many)"
    return Plan(num_shards, is_exact, where, why)


def bytes_in_process(spec: StoreSpec) -> int:
    """Most memory that labeling takes in one process.

    Rows and lists as a store of one shard has them, the edges while they are sorted, and the
    columns of a solve.
    """
    edges = 2 * spec.k * 8 * _EDGE_COLUMNS
    columns = 8 * spec.num_classes * _SOLVE_COLUMNS
    return spec.num_nodes * (peak_bytes_per_node(spec) + edges + columns)


def available_bytes(
    meminfo: Path = Path("/proc/meminfo"), cgroup: Path = Path("/sys/fs/cgroup")
) -> int | None:
    """Memory that is free or can be freed, within this process's container; None if unknown."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        limit, used = (
            int((cgroup / name).read_text()) for name in ("memory.max", "memory.current")
        )
    except (OSError, ValueError):  # no container, or "max": no limit
        return free
    return min(free, limit - used)


def _where(spec: StoreSpec, shards: int | None, available: int | None) -> tuple[int, str]:
    if shards is not None:
        return shards, f"{shards} shards on Ray (as asked)"
    needed = bytes_in_process(spec)
    if available is None or needed <= USABLE * available:
        free = "" if available is None else f" of {_gib(available)} free"
        return 0, f"one process (about {_gib(needed)}{free})"
    chosen = max(2, -(-peak_bytes_per_node(spec) * spec.num_nodes // SHARD_BYTES))
    why = f"one process would take about {_gib(needed)} of {_gib(available)} free"
    return chosen, f"{chosen} shards on Ray ({why})"


def _gib(size: int) -> str:
    return f"{size / 2**30:.2g} GiB" if size >= 2**29 else f"{size / 2**20:.0f} MiB"
