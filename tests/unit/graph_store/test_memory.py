"""What a store takes against what is documented, and the refusal of what does not fit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from labelmesh.graph_store.local_store import LocalStore
from labelmesh.graph_store.memory import (
    bytes_per_node,
    check_memory,
    peak_bytes_per_node,
)
from labelmesh.graph_store.store import StoreSpec
from labelmesh.graph_store.view import GraphView, NodeState, PseudoLabels
from torch import Tensor

N = 2000


def tensors(root: object, seen: set[int]) -> Iterator[Tensor]:
    """All tensors that can be reached from an object."""
    if id(root) in seen:
        return
    seen.add(id(root))
    if isinstance(root, Tensor):
        yield root
    elif isinstance(root, dict):
        for value in root.values():
            yield from tensors(value, seen)
    elif isinstance(root, (list, tuple)):
        for value in root:
            yield from tensors(value, seen)
    elif hasattr(root, "__dict__"):
        yield from tensors(vars(root), seen)


def bytes_held(root: object) -> int:
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors(root, set())
    }
    return sum(storages.values())


def refresh(graph: GraphView, state: NodeState) -> PseudoLabels:
    return PseudoLabels(state.probs.clone(), torch.ones(len(state.labels)))


@pytest.mark.parametrize("backend", ["auto", "faiss"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize(("dim", "k", "num_classes"), [(64, 15, 10), (16, 5, 100)])
def test_memory_between_rounds_is_as_documented(
    backend: Any, metric: Any, dtype: Any, dim: int, k: int, num_classes: int
) -> None:
    spec = StoreSpec(N, dim, num_classes, k, metric=metric, dtype=dtype, backend=backend)
    store = LocalStore(spec)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, dim, generator=generator)
    for round in range(3):
        x = x + 1e-4 * torch.randn(N, dim, generator=generator)
        store.put(torch.arange(N), x, torch.full((N, num_classes), 1 / num_classes))
        store.update_knn()
        store.refresh(refresh, round=round)
    assert bytes_held(store) / N == pytest.approx(bytes_per_node(spec), rel=0.1)
    assert peak_bytes_per_node(spec) > bytes_per_node(spec)


def test_what_does_not_fit_is_refused_with_numbers() -> None:
    spec = StoreSpec(num_nodes=1_000_000, dim=128, num_classes=10, k=15)
    each = 250_000 * peak_bytes_per_node(spec)
    check_memory(spec, 250_000, 4, {"a": 2.0 * each, "b": 2.5 * each})
    check_memory(spec, 250_000, 4, {})
    with pytest.raises(ValueError, match=r"1,000,000 nodes .* use dtype=\"float16\""):
        check_memory(spec, 250_000, 4, {"a": 2.0 * each, "b": 1.5 * each})
    with pytest.raises(ValueError, match=r"on 8 machines, at most .* use more and smaller shards"):
        check_memory(spec, 250_000, 4, {str(m): 0.9 * each for m in range(8)})
