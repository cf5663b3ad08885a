"""Where a labeling runs: by sizes alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from labelmesh.cluster.label_plan import (
    SHARD_BYTES,
    available_bytes,
    bytes_in_process,
    make_plan,
)
from labelmesh.graph_store.memory import peak_bytes_per_node
from labelmesh.graph_store.store import StoreSpec

SMALL = StoreSpec(num_nodes=1000, dim=16, num_classes=10, k=20, metric="euclidean")
GIB = 1 << 30


def test_what_fits_stays_in_one_process() -> None:
    plan = make_plan(SMALL, available=8 * GIB)
    assert (plan.num_shards, plan.is_exact) == (0, True)
    assert plan.where.startswith("one process (about ")
    assert plan.where.endswith(" of 8 GiB free)")
    assert make_plan(SMALL).num_shards == 0


def test_what_does_not_fit_goes_to_shards_of_bounded_size() -> None:
    spec = replace(SMALL, num_nodes=20_000_000)
    plan = make_plan(spec, available=16 * GIB)
    each = peak_bytes_per_node(spec) * spec.num_nodes / plan.num_shards
    assert plan.num_shards >= 2
    assert each <= SHARD_BYTES
    assert not plan.is_exact
    assert "one process would take about" in plan.where
    tight = make_plan(SMALL, available=bytes_in_process(SMALL))
    assert tight.num_shards == 2


@pytest.mark.parametrize(
    ("num_rows", "dim", "search", "is_exact"),
    [
        (700_000, 32, "auto", True),
        (1_000_000, 32, "auto", False),
        (100_000, 768, "auto", True),
        (200_000, 768, "auto", False),
        (1000, 16, "approximate", False),
        (1_000_000, 32, "exact", True),
    ],
)
@pytest.mark.parametrize("shards", [None, 3])
def test_search(num_rows: int, dim: int, search: str, is_exact: bool, shards: int | None) -> None:
    spec = replace(SMALL, num_nodes=num_rows, dim=dim)
    plan = make_plan(spec, shards=shards, search=search)
    assert plan.is_exact == is_exact
    assert plan.num_shards == (shards or 0)
    assert plan.search.startswith("exact (" if is_exact else "approximate (")


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="search = 'fast': known are auto, exact, approximate"):
        make_plan(SMALL, search="fast")
    with pytest.raises(ValueError, match="shards = 0 must be at least 1"):
        make_plan(SMALL, shards=0)


def test_memory_is_what_the_machine_and_the_container_leave(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 4096 kB\nMemAvailable: 2048 kB\n")
    assert available_bytes(meminfo, tmp_path) == 2048 * 1024
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2000000\n")
    assert available_bytes(meminfo, tmp_path) == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_bytes(meminfo, tmp_path) == 2048 * 1024
    assert available_bytes(tmp_path / "nothing", tmp_path) is None
