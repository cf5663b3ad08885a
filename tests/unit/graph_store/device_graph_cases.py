"""Graphs of rows that are not on the CPU: everything stays where the rows are."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from labelmesh.graph_store.incremental import LiveGraph
from labelmesh.graph_store.kernels import host_rows, knn_device
from labelmesh.graph_store.kernels.knn import knn_blocked, knn_self_join, make_bank, make_search
from labelmesh.graph_store.kernels.rounding import Precision
from labelmesh.graph_store.knn_graph import knn_graph
from labelmesh.graph_store.local_store import LocalStore
from labelmesh.graph_store.partition import Partition
from labelmesh.graph_store.peers import Peers
from labelmesh.graph_store.store import StoreSpec
from labelmesh.tests.fuzz.updates import Case, brute_force, history
from labelmesh.tests.unit.graph_store.other_device import DEVICE, OtherDevice
from torch import Tensor


@pytest.fixture(autouse=True)
def other_device() -> Iterator[None]:
    with OtherDevice():
        yield


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_tensors_of_two_devices_do_not_meet() -> None:
    x = randn(3, 2).to(DEVICE)
    assert x.device == DEVICE
    assert torch.equal((x + x).cpu(), 2 * x.cpu())
    with pytest.raises(RuntimeError, match="two devices"):
        x + randn(3, 2)
    with pytest.raises(TypeError, match="numpy"):
        x.numpy()


def test_searches() -> None:
    x = randn(150, 6)
    ids, distances = knn_self_join(x.to(DEVICE), 5)
    assert ids.device == distances.device == DEVICE
    assert torch.equal(ids.cpu(), knn_self_join(x, 5)[0])
    assert torch.equal(distances.cpu(), knn_self_join(x, 5)[1])
    found = knn_blocked(x[:9].to(DEVICE), x.to(DEVICE), 4)[0].cpu()
    assert torch.equal(found, knn_blocked(x[:9], x, 4)[0])


@pytest.mark.parametrize(
    ("precision", "budget"), [("float32", 4000), ("float16", 10**6), ("int8", 1000)]
)
def test_rows_of_the_host_are_searched_on_the_device(
    precision: Precision, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = host_rows._Copier.copy

    def in_thread(copier: host_rows._Copier, part: slice) -> Tensor:
        with OtherDevice():
            return copy(copier, part)

    monkeypatch.setattr(host_rows._Copier, "copy", in_thread)
    x, own = randn(100, 12), torch.arange(100)
    task = make_search(make_bank(x, own, "euclidean"), x, 5, own)
    expected = knn_self_join(x, 5)
    for search in (knn_device.search, knn_device.self_join):
        found = search(task, precision=precision, device=DEVICE, budget=budget)
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])


@pytest.mark.parametrize(("precision", "seed"), [("float32", 1), ("float16", 4), ("int8", 6)])
def test_followed_graphs(precision: Precision, seed: int) -> None:
    case = Case(40, 5, 3, 8, "clustered", 5, seed)
    live = LiveGraph(Peers(Partition.even(40, 1)), 3, 8, precision=precision)
    for step in history(case):
        live.update(step.rows.to(DEVICE), step.active.to(DEVICE))
        ids, distances = brute_force(step.rows, step.active, 3)
        assert live.neighbor_ids.device == DEVICE
        assert torch.equal(live.neighbor_ids.cpu(), ids)
        assert torch.equal(live.distances.cpu(), distances)


def test_what_coarse_references_cannot_prove_is_built_with_float32() -> None:
    centers = randn(3, 16).repeat(40, 1)
    x = centers + 1e-4 * randn(120, 16, seed=1)
    live = LiveGraph(Peers(Partition.even(120, 1)), 5, 12, precision="int8")
    live.update(x.to(DEVICE), torch.ones(120, dtype=torch.bool, device=DEVICE))
    assert live.precision == "float32"
    assert torch.equal(live.neighbor_ids.cpu(), knn_self_join(x, 5)[0])


def test_fine_rows_keep_their_precision_and_are_followed() -> None:
    x = randn(300, 16)
    live = LiveGraph(Peers(Partition.even(300, 1)), 5, 24, precision="float16")
    everyone = torch.ones(300, dtype=torch.bool, device=DEVICE)
    assert live.update(x.to(DEVICE), everyone).rebuilt
    x[:6] += 0.1 * randn(6, 16, seed=1)
    report = live.update(x.to(DEVICE), everyone)
    assert live.precision == "float16"
    assert not report.rebuilt
    assert report.searched <= 12
    assert torch.equal(live.neighbor_ids.cpu(), knn_self_join(x, 5)[0])


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "inner_product"])
def test_graph_of_an_array_and_its_updates(metric: str) -> None:
    x = randn(70, 6)
    y = x + 0.02 * randn(70, 6, seed=1)
    z = torch.cat([y, randn(4, 6, seed=2)])
    z[3] = 0
    gone = torch.tensor([50, 51])
    there, here = knn_graph(x.to(DEVICE), 5, metric), knn_graph(x, 5, metric)
    for rows, removed in ((y, None), (z, gone)):
        there = there.update(rows.to(DEVICE), removed=removed)[0]
        here = here.update(rows, removed=removed)[0]
        assert there.ids.device == DEVICE
        assert torch.equal(there.ids.cpu(), here.ids)
        assert torch.equal(there.distances.cpu(), here.distances)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_store_whose_arithmetic_is_on_the_device(metric: str) -> None:
    x = randn(66, 6)
    stores = [
        LocalStore(StoreSpec(num_nodes=66, dim=6, num_classes=2, k=4, metric=metric, device=device))
        for device in ("cpu", str(DEVICE))
    ]
    for step in range(3):
        x[step * 5 : step * 5 + 5] += 0.2 * randn(5, 6, seed=step)
        x[60] = 0
        columns = []
        for store in stores:
            store.put(torch.arange(66), x)
            report = store.update_knn()
            assert report.rebuilt == (step == 0)
            columns.append(store._shard._state.staged)
        assert torch.equal(columns[0]["neighbor_ids"], columns[1]["neighbor_ids"])
        assert torch.equal(columns[0]["distances"], columns[1]["distances"])
