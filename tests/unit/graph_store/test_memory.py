"""What a store takes against what is documented, and the refusal of what does not fit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
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


_SOLVE = """
import resource, sys, threading, torch
from pathlib import Path
from labelmesh.graph_store import solvers
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.kernels.csr import symmetrize
from labelmesh.graph_store.memory import solver_bytes

C = 30
def ring(n):
    rows = torch.arange(n).repeat_interleave(4)
    cols = (rows + torch.tensor([1, 3, 7, 13]).repeat(n)) % n
    return LocalAffinity(symmetrize(rows, cols, torch.ones(4 * n, dtype=torch.float64), n, "amax"))
def labels(n):
    given = torch.full((n,), -1)
    given[: 10 * C] = torch.arange(10 * C) % C
    return given[torch.randperm(n, generator=torch.Generator().manual_seed(0))]
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

solve = getattr(solvers, sys.argv[1])
solve(ring(2500), labels(2500), tol=1e-3)
w, given, stop, peak = ring(60_000), labels(60_000), threading.Event(), [0]
before = resident()
def watch():
    while not stop.wait(0.001):
        peak[0] = max(peak[0], resident() - before)
thread = threading.Thread(target=watch)
thread.start()
solve(w, given, tol=1e-3)
stop.set()
thread.join()
print(peak[0] / solver_bytes(60_000, len(w.csr.cols), C))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("solver", ["laplace", "poisson", "local_global"])
def test_a_solve_takes_what_is_documented(solver: str) -> None:
    # In a process of its own: memory that others have left free would hide what is taken.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": "0"}
    done = subprocess.run(
        [sys.executable, "-c", _SOLVE, solver],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert 0.4 < float(done.stdout) < 1.05
