"""How a store keeps its graph: followed exactly, refined, or searched anew by another backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from labelmesh import knn_graph
from labelmesh.graph_store.local_store import LocalStore
from labelmesh.graph_store.store import StoreSpec
from torch import Tensor

N, D, K = 1500, 12, 8
ALL = torch.arange(N)


def clusters(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centers = 3 * torch.randn(15, D, generator=generator)
    return centers[ALL % 15] + torch.randn(N, D, generator=generator)


def moved(x: Tensor, share: float, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Some rows elsewhere, and their ids."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(N, generator=generator)[: int(share * N)]
    x = x.clone()
    x[ids] += 0.5 * torch.randn(len(ids), D, generator=generator)
    return x, ids


def store(**options: Any) -> LocalStore:
    return LocalStore(StoreSpec(N, D, 2, K, metric="euclidean", **options))


@pytest.mark.parametrize("backend", ["auto", "torch", "faiss"])
def test_exact_stores_agree_and_those_of_torch_search_only_what_moved(backend: Any) -> None:
    x = clusters()
    kept = store(backend=backend)
    kept.put(ALL, x)
    assert kept.update_knn().rebuilt
    x, ids = moved(x, 0.02)
    kept.put(ids, x[ids])
    report = kept.update_knn()
    graph = knn_graph(x, K)
    assert torch.equal(kept.neighbors(ALL)[0], graph.ids)
    assert report.exact
    assert report.recall == 1.0
    if backend == "faiss":
        assert report.rebuilt
        assert report.searched == N
    else:
        assert not report.rebuilt
        assert report.searched == len(ids)
        assert report.distances < 0.1 * N * N


def test_a_refined_store_says_what_it_has_measured() -> None:
    x = clusters()
    kept = store(update="refine", recall_target=0.95)
    kept.put(ALL, x)
    first = kept.update_knn()
    x, ids = moved(x, 0.1)
    kept.put(ids, x[ids])
    second = kept.update_knn()
    true = knn_graph(x, K).ids
    found = kept.neighbors(ALL)[0]
    recall = float((found[:, :, None] == true[:, None, :]).any(2).double().mean())
    for report in (first, second):
        assert report.exact == report.rebuilt
        assert report.recall_low >= 0.95
        assert report.recall_low <= report.recall
    assert recall >= second.recall_low
    assert abs(recall - second.recall) < 0.02


def test_a_target_that_refinement_misses_is_reached_by_searching_everything() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator)  # no structure: local joins from nothing fall short
    kept = LocalStore(
        StoreSpec(N, D, 2, 1, metric="euclidean", update="refine", recall_target=0.996)
    )
    kept.put(ALL, x)
    report = kept.update_knn()
    assert report.rebuilt
    assert report.exact
    assert torch.equal(kept.neighbors(ALL)[0], knn_graph(x, 1).ids)


def test_an_ivf_store_and_graph_measure_their_recall() -> None:
    pytest.importorskip("faiss")
    x = clusters()
    kept = store(backend="ivf")
    kept.put(ALL, x)
    report = kept.update_knn()
    graph = knn_graph(x, K, backend="ivf")
    true = knn_graph(x, K)
    assert not report.exact
    assert graph.recall is not None
    assert true.recall is None
    share = float((graph.ids[:, :, None] == true.ids[:, None, :]).any(2).double().mean())
    assert graph.recall.low <= share <= graph.recall.high
    assert report.recall_low <= share
    assert report.recall == pytest.approx(share, abs=0.02)
    again, second = graph.update(x)
    assert not second.exact
    assert second.changed == 0
    assert torch.equal(again.ids, graph.ids)


def test_removed_nodes_leave_the_graph_until_they_are_put_again() -> None:
    x = clusters()
    kept = store()
    kept.put(ALL, x)
    kept.update_knn()
    gone = ALL[5:1500:50]
    kept.remove(gone)
    report = kept.update_knn()
    assert not report.rebuilt
    ids = kept.neighbors(ALL)[0]
    assert (ids[gone] == -1).all()
    assert not torch.isin(ids, gone).any()
    assert not kept.read("present", gone).any()
    kept.put(gone, x[gone])
    kept.update_knn()
    assert torch.equal(kept.neighbors(ALL)[0], knn_graph(x, K).ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": -0.1}, r"tolerance = -0.1 must be 0 \(exact\) or more"),
        ({"slack": K}, f"slack = {K} must be more than k = {K}"),
        ({"recall_target": 1.0}, "recall_target = 1.0 must lie between 0 and 1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        store(**options)
