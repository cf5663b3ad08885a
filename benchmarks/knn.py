"""The exact kNN graph against `faiss.knn` on the CPU, in one run.

    python benchmarks/knn.py --rows 10000 30000 60000 --dims 64 128 --threads 2
    python benchmarks/knn.py --data manifold random --rows 60000 --dims 128
    python benchmarks/knn.py --features runs/embeddings.npz

Prints medians of interleaved repetitions, in wall-clock and in CPU seconds, and their ratios to
faiss (below 1: Labelmesh is faster). Both search exactly; "same" is the share of equal ids (faiss'
float32 distances and its own order of ties leave a few different). "all" is the search of
everything, which the build leaves for cells where it predicts that they are faster; "share" is the
predicted share of all pairs that a search through cells looks at, and "cells" their number where
they were chosen.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import torch
from labelmesh.graph_store.kernels import knn_cells, knn_cpu
from labelmesh.graph_store.kernels.cells import make_cells, make_centers
from labelmesh.graph_store.kernels.cells_choice import choose_cells, default_cells, predict_share
from labelmesh.graph_store.kernels.knn import (
    knn_self_join,
    make_bank,
    make_search,
    normalize_rows,
)
from numpy.typing import NDArray

KINDS = ["random", "clustered", "manifold"]
Times = tuple[list[float], list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 30_000, 60_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--data", nargs="+", choices=KINDS, default=["clustered"])
    parser.add_argument("--features", nargs="*", default=[], help="instead: .npy or .npz files")
    parser.add_argument("-k", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    warm_up(args.k)
    print(f"k = {args.k}, {args.threads} threads, medians of {args.repeats}")
    print(
        f"{'data':10} {'n':>7} {'d':>4} {'faiss s':>8} {'all s':>8} {'ours s':>8} {'ratio':>6} "
        f"{'faiss cpu':>9} {'all cpu':>8} {'ours cpu':>9} {'ratio':>6} {'same':>8} {'share':>7} "
        f"{'cells':>5}"
    )
    for path in args.features:
        compare(Path(path).stem[-10:], load_rows(path), args.k, args.repeats)
    for data in args.data if not args.features else []:
        for num_rows in args.rows:
            for dim in args.dims:
                compare(data, make_rows(data, num_rows, dim), args.k, args.repeats)


def compare(name: str, rows: torch.Tensor, k: int, repeats: int) -> None:
    array, (num_rows, dim) = rows.numpy(), rows.shape
    own = torch.arange(num_rows)
    task = make_search(make_bank(rows, own, "euclidean"), rows, k, own)
    their_ids, our_ids = np.empty((0, 0), np.int64), np.empty((0, 0), np.int64)
    times: list[Times] = [([], []), ([], []), ([], [])]
    for _ in range(repeats):
        their_ids = timed(lambda: faiss.knn(array, array, k + 1)[1], times[0])
        timed(lambda: knn_cpu.self_join(task)[0].numpy(), times[1])
        our_ids = timed(lambda: knn_self_join(rows, k)[0].numpy(), times[2])
    same = float(np.mean(without_self(their_ids) == our_ids))
    walls, cpus = ([statistics.median(part[kind]) for part in times] for kind in (0, 1))
    centers = make_centers(task.filter.bank, default_cells(num_rows))
    cells = choose_cells(task)
    print(
        f"{name:10} {num_rows:7d} {dim:4d} {walls[0]:8.3f} {walls[1]:8.3f} {walls[2]:8.3f} "
        f"{walls[2] / walls[0]:6.2f} {cpus[0]:9.3f} {cpus[1]:8.3f} {cpus[2]:9.3f} "
        f"{cpus[2] / cpus[0]:6.2f} {same:8.5f} {predict_share(task, centers):7.4f} "
        f"{cells.half.shape[0] if cells else '-':>5}",
        flush=True,
    )


def warm_up(k: int) -> None:
    """Compile, on rows of few dimensions, what either kind of search needs."""
    rows = make_rows("manifold", 5 * 512, 8)
    own = torch.arange(rows.shape[0])
    task = make_search(make_bank(rows, own, "euclidean"), rows, k, own)
    predict_share(task, make_centers(task.filter.bank, 4))
    knn_cells.search(task, make_cells(task.filter.bank, 16))
    knn_cpu.self_join(task)


def load_rows(path: str) -> torch.Tensor:
    """The largest array of a file, as unit rows."""
    loaded = np.load(path)
    arrays = [loaded] if isinstance(loaded, np.ndarray) else [loaded[key] for key in loaded.files]
    features = max(arrays, key=lambda array: array.size)
    return normalize_rows(torch.from_numpy(features.reshape(len(features), -1)).float())


def make_rows(data: str, num_rows: int, dim: int) -> torch.Tensor:
    """Unit rows: isotropic, 100 Gaussian clusters, or 10 classes of 8 dimensions each."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(num_rows, dim, generator=generator)
    if data == "clustered":
        centers = torch.randn(100, dim, generator=generator)
        rows += centers[torch.randint(0, 100, (num_rows,), generator=generator)]
    if data == "manifold":
        centers, axes = (torch.randn(10, n, dim, generator=generator) for n in (1, 8))
        rows *= 0.05
        for part, center, axis in zip(rows.chunk(10), centers, axes):
            part += center + torch.randn(len(part), 8, generator=generator) @ axis / 2
        rows = rows[torch.randperm(num_rows, generator=generator)]
    return normalize_rows(rows)


def timed(call: Callable[[], NDArray[np.int64]], times: Times) -> NDArray[np.int64]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = call()
    times[0].append(time.perf_counter() - wall)
    times[1].append(time.process_time() - cpu)
    return found


def without_self(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """Drop the query from its k + 1 neighbours, or the last one where it is not among them."""
    is_self = ids == np.arange(len(ids))[:, None]
    is_self[~is_self.any(1), -1] = True
    others: NDArray[np.int64] = ids[~is_self].reshape(len(ids), -1)
    return others


if __name__ == "__main__":
    main()
