"""The graph learning layer, forward and backward, against the same in SciPy, in one run.

    python benchmarks/gll.py --threads 2 --repeats 7

The reference works as the published code does: kNN, W as a SciPy sparse matrix, `spsolve` for each
class in a loop, forward and backward, and the gradient of the weights, bandwidths included, in
NumPy. "factor" is the same with one sparse LU decomposition for all classes and both directions,
which the published code does not have. Medians of interleaved repetitions in wall-clock and CPU
milliseconds; the ratios are the time of "spsolve" and of "factor" over ours (above 1: Labelmesh is
faster). Gradients are compared in every row; "error" is the largest difference.

Features are unit rows of 10 classes that vary in 16 directions: "separate" classes touch at their
borders, "mixed" ones overlap, which costs sparse factors more fill-in.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from unittest import mock

import numpy as np
import torch
from labelmesh.graph_store.kernels.batch_knn import nearest
from labelmesh.graph_store.kernels.rows import normalize_rows
from labelmesh.trainers.layers import graph_learning
from labelmesh.trainers.layers.graph_learning import GraphLearningLayer
from numpy.typing import NDArray
from scipy.sparse import csc_array, csr_array, diags_array
from scipy.sparse.linalg import splu, spsolve
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits
from torch import Tensor

K, DIM, CLASSES = 24, 128, 10
DIRECTIONS = 16
# Largest difference of two gradients, as a share of the largest number in them.
MAX_ERROR = 1e-5
# Distance of the classes' centres, in units of the spread within a class.
SPREAD = {"separate": 1.2, "mixed": 0.5}

Array = NDArray[np.floating]
Solver = Callable[[csc_array], Callable[[Array], Array]]
Call = Callable[[], Array]
Times = tuple[list[float], list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[200, 100, 1000, 100, 2000, 200], metavar="ROWS"
    )
    parser.add_argument("--data", nargs="+", choices=list(SPREAD), default=list(SPREAD))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(
        f"k = {K}, d = {DIM}, C = {CLASSES}, {args.threads} threads, medians of {args.repeats}, ms"
    )
    half = f" {'spsolve':>8} {'factor':>7} {'ours':>6} {'ratio':>6} {'ratio':>6}  "
    print(f"{'':22} {'wall-clock':38} CPU")
    print(f"{'data':8} {'rows':>9} {'kNN':>4}{half}{half}{'error':>7}")
    with threadpool_limits(args.threads):
        for data in args.data:
            for free, base in zip(args.batches[::2], args.batches[1::2]):
                compare(data, free, base, args.repeats)


def compare(data: str, free: int, base: int, repeats: int) -> None:
    """Two rows of the table: with and without the search for neighbours."""
    x, classes = make_rows(free + base, SPREAD[data])
    labels = torch.where(torch.arange(free + base) < free, -1, classes)
    truth, found = classes[:free], nearest(x, K)
    given = x.double().numpy(), labels.numpy(), truth.numpy()
    lists = found[0].numpy(), found[1].numpy()

    def ours_without_search() -> Array:
        with mock.patch.object(graph_learning, "nearest", return_value=found):
            return step(x, labels, truth)

    measure(
        f"{data:8} {free:5}+{base:3}  yes",
        lambda: reference(*given, None, per_class),
        lambda: reference(*given, None, factor),
        lambda: step(x, labels, truth),
        repeats,
    )
    measure(
        f"{data:8} {free:5}+{base:3}   no",
        lambda: reference(*given, lists, per_class),
        lambda: reference(*given, lists, factor),
        ours_without_search,
        repeats,
    )


def measure(name: str, spsolve: Call, factor: Call, ours: Call, repeats: int) -> None:
    calls = (spsolve, factor, ours)
    gradients: list[Array] = [np.empty(0)] * 3
    times: list[Times] = [([], []), ([], []), ([], [])]
    # The first repetition compiles.
    for repetition in range(repeats + 1):
        for which, call in enumerate(calls):
            wall, cpu = time.perf_counter(), time.process_time()
            gradients[which] = call()
            if repetition:
                times[which][0].append(time.perf_counter() - wall)
                times[which][1].append(time.process_time() - cpu)
    error = max(abs(g - gradients[0]).max() for g in gradients) / abs(gradients[0]).max()
    if not error < MAX_ERROR:
        raise SystemExit(f"{name}: gradients differ by {error:.1e} of the largest")
    numbers = ""
    for kind in (0, 1):
        a, b, c = (1e3 * statistics.median(part[kind]) for part in times)
        numbers += f" {a:8.1f} {b:7.1f} {c:6.1f} {a / c:6.1f} {b / c:6.1f}  "
    print(f"{name}{numbers}{error:7.0e}", flush=True)


def make_rows(num_rows: int, spread: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    centers = spread * torch.randn(CLASSES, DIRECTIONS, generator=generator)
    axes = torch.randn(DIRECTIONS, DIM, generator=generator)
    classes = torch.arange(num_rows) % CLASSES
    inner = centers[classes] + torch.randn(num_rows, DIRECTIONS, generator=generator)
    rows = inner @ axes + 0.3 * torch.randn(num_rows, DIM, generator=generator)
    return normalize_rows(rows), classes


def step(x: Tensor, labels: Tensor, truth: Tensor) -> Array:
    """Gradient of the cross-entropy by the features, through the layer."""
    leaf = x.clone().requires_grad_()
    probs = GraphLearningLayer(K)(leaf, labels, CLASSES)
    loss = -(probs.gather(1, truth[:, None]) + 1e-8).log().mean()
    (gradient,) = torch.autograd.grad(loss, leaf)
    result: Array = gradient.numpy()
    return result


def reference(
    x: Array,
    labels: NDArray[np.int64],
    truth: NDArray[np.int64],
    lists: tuple[NDArray[np.int64], Array] | None,
    solver: Solver,
) -> Array:
    """The same with SciPy and NumPy."""
    num_rows = len(x)
    ids, distances = search(x) if lists is None else lists
    rows = np.repeat(np.arange(num_rows), K)
    listed = csr_array((distances.ravel(), (rows, ids.ravel())), shape=(num_rows, num_rows))
    edges = listed.maximum(listed.T).tocoo()
    i, j, d2, eps = edges.row, edges.col, edges.data**2, np.maximum(distances[:, -1], 1e-10)
    values = np.exp(-4 * d2 / (eps[i] * eps[j]))
    w = csr_array((values, (i, j)), shape=(num_rows, num_rows))
    degrees = w.sum(axis=1)
    u, b = np.flatnonzero(labels < 0), np.flatnonzero(labels >= 0)
    laplacian = (diags_array(degrees) - w).tocsc()
    solve = solver(laplacian[u][:, u].tocsc())
    probs = np.eye(CLASSES)[np.maximum(labels, 0)]
    probs[u] = solve(w[u][:, b] @ probs[b])
    g = np.zeros((len(u), CLASSES))
    own = np.arange(len(u)), truth
    g[own] = -1 / (probs[u][own] + 1e-8) / len(u)
    adjoint = np.zeros_like(probs)
    adjoint[u] = solve(g)
    # Both directions of an edge are listed, so each has half of its derivative.
    by_w = -((adjoint[i] - adjoint[j]) * (probs[i] - probs[j])).sum(1) / 2
    by_d2 = by_w * values * -4 / (eps[i] * eps[j])
    by_eps = np.bincount(i, 2 * by_w * values * 4 * d2 / (eps[i] ** 2 * eps[j]), num_rows)
    farthest = ids[:, -1]
    pull = csr_array((by_d2, (i, j)), shape=(num_rows, num_rows))
    to_farthest = (np.arange(num_rows), farthest)
    pull = pull + csr_array((by_eps / (2 * eps), to_farthest), shape=pull.shape)
    pull = pull + pull.T
    out: Array = 2 * (pull.sum(axis=1)[:, None] * x - pull @ x)
    return out


def search(x: Array) -> tuple[NDArray[np.int64], Array]:
    found = NearestNeighbors(n_neighbors=K, algorithm="brute").fit(x)
    distances, ids = found.kneighbors()
    return ids, distances


def per_class(matrix: csc_array) -> Callable[[Array], Array]:
    return lambda rhs: np.stack([spsolve(matrix, column) for column in rhs.T], axis=1)


def factor(matrix: csc_array) -> Callable[[Array], Array]:
    return splu(matrix).solve


if __name__ == "__main__":
    main()
