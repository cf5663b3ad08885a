"""Graphs on a CUDA device: those of the CPU, whatever the precision, blocks and memory."""

from __future__ import annotations

import pytest
import torch
from labelmesh.graph_store.incremental import LiveGraph
from labelmesh.graph_store.kernels import knn_device, lists_device, offers
from labelmesh.graph_store.kernels.knn import knn_self_join, make_bank, make_search, normalize_rows
from labelmesh.graph_store.kernels.list_types import Framed
from labelmesh.graph_store.kernels.rounding import PRECISIONS, Precision, half_lengths, round_to
from labelmesh.graph_store.knn_graph import knn_graph
from labelmesh.graph_store.local_store import LocalStore
from labelmesh.graph_store.partition import Partition
from labelmesh.graph_store.peers import Peers
from labelmesh.graph_store.store import StoreSpec
from labelmesh.tests.fuzz.updates import Case, brute_force, history
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def clustered(num_rows: int, dim: int) -> Tensor:
    centers = randn(20, dim, seed=1)
    return normalize_rows(randn(num_rows, dim) + centers[torch.arange(num_rows) % 20])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_keys_are_within_the_error_that_is_allowed(precision: Precision) -> None:
    """Tensor cores add rounded products: only their sums are inexact."""
    from labelmesh.graph_store.kernels.rounding import product_error

    for dim in (8, 130, 1024):
        rows = randn(600, dim).cuda()
        rounded = round_to(rows, precision)
        ids = torch.arange(600, dtype=torch.int32, device="cuda")
        framed = Framed(rounded.values, half_lengths(rounded), ids, rounded.unit, precision)
        with offers.products_in(precision, rows.device):
            keys = offers.block_keys(framed, framed)
        points = rounded.widen().double()
        exact = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
        longest = float(torch.linalg.vector_norm(points, dim=1).max())
        worst = float((keys.double() - exact.square() / 2).abs().max())
        assert worst <= product_error(dim, longest, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("block", [500, 8192])
def test_self_join_and_search(
    precision: Precision, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(offers, "BLOCK", block)
    rows = clustered(4000, 48)
    expected = knn_self_join(rows, 10)
    own = torch.arange(4000, device="cuda")
    task = make_search(make_bank(rows.cuda(), own, "euclidean"), rows.cuda(), 10, own)
    for search in (knn_device.self_join, knn_device.search):
        found = search(task, precision=precision)
        assert torch.equal(found[0].cpu(), expected[0])
        assert torch.equal(found[1].cpu(), expected[1])


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("budget", [50_000, 10**9])
@pytest.mark.parametrize("is_pinned", [False, True])
def test_rows_are_streamed_from_the_host(
    precision: Precision, budget: int, is_pinned: bool
) -> None:
    rows, own = clustered(3000, 32), torch.arange(3000)
    rows = rows.pin_memory() if is_pinned else rows
    task = make_search(make_bank(rows, own, "euclidean"), rows, 10, own)
    expected = knn_self_join(rows, 10)
    for search in (knn_device.self_join, knn_device.search):
        found = search(task, precision=precision, device=torch.device("cuda"), budget=budget)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize("precision", [None, *PRECISIONS])
@pytest.mark.parametrize("seed", range(4))
def test_followed_graphs(precision: Precision | None, seed: int) -> None:
    case = Case(300, 16, 6, 24, ("random", "clustered", "grid", "manifold")[seed], 8, seed)
    live = LiveGraph(Peers(Partition.even(300, 1)), 6, 24, precision=precision)
    for step in history(case):
        live.update(step.rows.cuda(), step.active.cuda())
        ids, distances = brute_force(step.rows, step.active, 6)
        assert live.neighbor_ids.is_cuda
        assert torch.equal(live.neighbor_ids.cpu(), ids)
        assert torch.equal(live.distances.cpu(), distances)


def test_references_are_float16_and_the_graph_is_followed() -> None:
    x = randn(2000, 32)
    live = LiveGraph(Peers(Partition.even(2000, 1)), 10)
    everyone = torch.ones(2000, dtype=torch.bool, device="cuda")
    live.update(x.cuda(), everyone)
    x[:20] += 0.1 * randn(20, 32, seed=1)
    report = live.update(x.cuda(), everyone)
    assert live._reference is not None
    assert live._reference.rows.dtype == torch.float16
    assert not report.rebuilt
    assert torch.equal(live.neighbor_ids.cpu(), knn_self_join(x, 10)[0])


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "inner_product"])
def test_graph_of_an_array_and_its_update(metric: str) -> None:
    x, y = randn(800, 12), randn(800, 12) + 0.02 * randn(800, 12, seed=1)
    there, here = knn_graph(x.cuda(), 7, metric), knn_graph(x, 7, metric)
    assert torch.equal(there.ids.cpu(), here.ids)
    there, here = there.update(y.cuda())[0], here.update(y)[0]
    assert torch.equal(there.ids.cpu(), here.ids)
    assert torch.equal(there.distances.cpu(), here.distances)


def test_store_whose_arithmetic_is_on_the_device() -> None:
    x = randn(500, 12)
    stores = [
        LocalStore(StoreSpec(num_nodes=500, dim=12, num_classes=2, k=6, device=device))
        for device in ("cpu", "cuda")
    ]
    for step in range(3):
        x[step * 9 : step * 9 + 9] += 0.2 * randn(9, 12, seed=step)
        for store in stores:
            store.put(torch.arange(500), x)
            assert store.update_knn().rebuilt == (step == 0)
        here, there = (store._shard._staged for store in stores)
        assert torch.equal(here["neighbor_ids"], there["neighbor_ids"])
        assert torch.equal(here["distances"], there["distances"])


def test_memory_of_a_self_join_stays_within_what_is_said() -> None:
    num_rows, width = 60_000, 24
    rows = randn(num_rows, 16).cuda()
    ids = torch.arange(num_rows, dtype=torch.int32, device="cuda")
    framed = Framed(rows, rows.square().sum(1) / 2, ids)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    lists_device.search_self(framed, width - 1)
    peak = torch.cuda.max_memory_allocated() - before
    lists = num_rows * width * 8
    merged = min(num_rows, offers.MERGED_ROWS) * 2 * width * 32
    waiting = 2 * max(offers.LEAST_HITS, offers.HITS_PER_ROW * num_rows) * 60
    assert peak <= lists + merged + waiting + 16 * offers.BLOCK**2
