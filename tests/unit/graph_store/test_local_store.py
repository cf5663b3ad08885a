"""Corners of a store that one process is enough to show; the rest is in tests/contract."""

from __future__ import annotations

import pytest
import torch
from labelmesh.graph_store.local_store import LocalStore
from labelmesh.graph_store.store import StoreSpec

ALL = torch.arange(6)
X = torch.tensor([[0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [-1.0, 0.5], [2.0, 0.0]])


def store_of(**options: object) -> LocalStore:
    spec = {"num_nodes": 6, "dim": 2, "num_classes": 2, "k": 2, **options}
    return LocalStore(StoreSpec(**spec))  # type: ignore[arg-type]


def test_nothing_can_be_read_before_a_graph_was_made() -> None:
    store = store_of()
    with pytest.raises(ValueError, match="nothing can be read yet; call put and update_knn first"):
        store.neighbors(ALL)
    with pytest.raises(ValueError, match="no features have been put; call put before update_knn"):
        store.update_knn()
    assert store.read("labels", ALL).eq(-1).all()


def test_the_graph_can_be_read_before_the_first_round() -> None:
    store = store_of()
    store.put(ALL, X)
    report = store.update_knn()
    assert (report.searched, report.changed) == (6, 6)
    # Nodes 1, 2 and 5 have one direction; ties go to the lower id.
    ids, similarity = store.neighbors(torch.tensor([5, 3]))
    assert ids.tolist() == [[1, 2], [0, 1]]
    torch.testing.assert_close(similarity, torch.tensor([[1.0, 1.0], [0.5**0.5, 0.5**0.5]]))
    assert store.published() == ()


def test_euclidean_graphs_do_not_normalise() -> None:
    store = store_of(metric="euclidean")
    store.put(ALL, X)
    store.update_knn()
    ids, similarity = store.neighbors(torch.tensor([5]))
    assert ids.tolist() == [[1, 2]]
    assert similarity.tolist() == [[0.5, 0.5]]  # 1 - d^2/2
    assert store.query(torch.tensor([[1.9, 0.1]]), k=1)[0].item() == 5


def test_few_nodes_have_fewer_neighbours() -> None:
    store = store_of(k=4)
    store.put(ALL[[4, 1, 2]], X[[4, 1, 2]])
    store.update_knn()
    ids, similarity = store.neighbors(ALL[:3])
    assert ids.tolist() == [[-1] * 4, [2, 4, -1, -1], [1, 4, -1, -1]]
    assert similarity[:, 2:].eq(0).all()
    density = store.read("density", ALL[:2])
    torch.testing.assert_close(density, torch.tensor([0.0, (1 - 0.8**0.5) / 2]))


def test_half_precision_changes_memory_but_not_kinds() -> None:
    store = store_of(dtype="float16")
    store.put(ALL, X / 3)
    store.update_knn()
    store.refresh(None, round=0)
    rows = store.read("features", ALL)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, (X / 3).half().float())
    assert store.neighborhood(ALL, hops=1).hops[0].features.dtype == torch.float32
    seen = []
    store.refresh(lambda graph, state: seen.append(state.features), round=1)
    assert torch.equal(seen[0], rows)


def test_probabilities_stay_where_none_are_given() -> None:
    store = store_of()
    store.put(ALL[:2], X[:2], torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    store.put(ALL[1:], X[1:])
    store.update_knn()
    assert store.read("probs", ALL[:3]).tolist() == [[0.25, 0.75], [0.5, 0.5], [0.0, 0.0]]


def test_faiss_gives_the_same_graph() -> None:
    pytest.importorskip("faiss")
    answers = []
    for backend in ("torch", "faiss"):
        store = store_of(backend=backend)
        store.put(ALL, X)
        store.update_knn()
        answers.append((*store.neighbors(ALL), *store.query(X * 2, k=5)))
    for one, other in zip(*answers):
        assert torch.equal(one, other)
