"""The approximate index: measured recall, canonical distances, lists as long as the exact ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from labelmesh.graph_store.index import NeighborIndex, make_index
from labelmesh.graph_store.kernels.knn import canonical_distances, knn_self_join
from labelmesh.graph_store.recall import recall_of
from torch import Tensor

faiss = pytest.importorskip("faiss")
from labelmesh.graph_store.faiss_index import FaissIvfIndex  # noqa: E402


def clustered(num_rows: int, dim: int = 16) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(20, dim, generator=generator)
    labels = torch.randint(0, 20, (num_rows,), generator=generator)
    return centres[labels] + torch.randn(num_rows, dim, generator=generator)


@pytest.mark.parametrize("metric", ["euclidean", "inner_product"])
def test_recall_and_canonical_distances(metric: Any) -> None:
    rows, node_ids = clustered(4000), torch.arange(4000) * 2
    index = FaissIvfIndex(rows, node_ids, metric)
    assert (index.nlist, index.nprobe) == (63, 8)
    ids, distances = index.search(rows, 10, node_ids)
    assert (ids != node_ids[:, None]).all()
    expected = knn_self_join(rows, 10, node_ids, metric=metric)[1]
    assert recall_of(ids, distances, expected, num_nodes=4000).value > 0.95
    queries = rows[:, None].expand(-1, 10, -1).contiguous()
    assert torch.equal(distances, canonical_distances(queries, rows[ids // 2], metric))
    assert ((distances.diff() > 0) | (ids.diff() > 0)).all()


def test_all_cells_give_the_exact_neighbours() -> None:
    rows = clustered(500)
    index = FaissIvfIndex(rows, torch.arange(500), nlist=10, nprobe=10)
    found, expected = index.search(rows, 7, torch.arange(500)), knn_self_join(rows, 7)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])


def test_threads_are_not_seen_and_the_seed_is() -> None:
    rows, ids = clustered(3000), torch.arange(3000)
    before, results = faiss.omp_get_max_threads(), []
    try:
        for threads, seed in ((1, 0), (2, 0), (1, 1)):
            faiss.omp_set_num_threads(threads)
            results.append(FaissIvfIndex(rows, ids, nprobe=1, seed=seed).search(rows, 20, ids))
    finally:
        faiss.omp_set_num_threads(before)
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])
    assert not torch.equal(results[0][0], results[2][0])


@pytest.mark.parametrize("num_rows", [0, 1, 3, 60])
def test_lists_are_as_long_as_the_exact_ones(num_rows: int) -> None:
    rows, ids = clustered(60)[:num_rows], torch.arange(num_rows)
    index = FaissIvfIndex(rows, ids, nlist=max(1, num_rows // 2), nprobe=1)
    for k in (1, 5, 70):
        found = index.search(rows, k, ids)
        lengths = (found[0] >= 0).sum(1)
        assert (lengths == min(k, max(0, num_rows - 1))).all()
        assert torch.equal(torch.isinf(found[1]), found[0] < 0)


def test_queries_far_outside_are_searched_exactly() -> None:
    rows = clustered(300)
    index = FaissIvfIndex(rows, torch.arange(300))
    far = rows[:4] * 1e25
    expected = make_index("torch", rows, torch.arange(300)).search(far, 5)
    assert torch.equal(index.search(far, 5)[0], expected[0])


def test_only_ivf_says_that_it_is_not_exact() -> None:
    rows, ids = clustered(50), torch.arange(50)
    exact = {name: make_index(name, rows, ids) for name in ("torch", "faiss", "ivf")}  # type: ignore[arg-type]
    assert all(isinstance(index, NeighborIndex) for index in exact.values())
    assert {name: index.is_exact for name, index in exact.items()} == {
        "torch": True,
        "faiss": True,
        "ivf": False,
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nlist": 51}, r"nlist must lie in 1\.\.50, the number of rows, got 51"),
        ({"nlist": 4, "nprobe": 5}, r"nprobe must lie in 1\.\.4, which is nlist, got 5"),
        ({"nprobe": 0}, r"nprobe must lie in 1\.\.1"),
    ],
)
def test_numbers_out_of_range(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FaissIvfIndex(clustered(50), torch.arange(50), **options)  # type: ignore[arg-type]
