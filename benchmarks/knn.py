"""The exact kNN graph against `faiss.knn` on the CPU, in one run.

    python benchmarks/knn.py --rows 10000 30000 60000 --dims 64 128 --threads 2

Prints medians of interleaved repetitions, in wall-clock and in CPU seconds, and their ratios
(below 1: Labelmesh is faster). Both search exactly; "same" is the share of equal ids (faiss'
float32 distances and its own order of ties leave a few different).
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import faiss
import numpy as np
import torch
from labelmesh.graph_store.kernels.knn import knn_self_join, normalize_rows
from numpy.typing import NDArray

Times = tuple[list[float], list[float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 30_000, 60_000])
    parser.add_argument("--dims", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--data", nargs="+", choices=["random", "clustered"], default=["clustered"])
    parser.add_argument("-k", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    print(f"k = {args.k}, {args.threads} threads, medians of {args.repeats}")
    print(
        f"{'data':10} {'n':>7} {'d':>4} {'faiss s':>8} {'ours s':>8} {'ratio':>6} "
        f"{'faiss cpu':>9} {'ours cpu':>9} {'ratio':>6} {'same':>8}"
    )
    for data in args.data:
        for num_rows in args.rows:
            for dim in args.dims:
                compare(data, num_rows, dim, args.k, args.repeats)


def compare(data: str, num_rows: int, dim: int, k: int, repeats: int) -> None:
    rows = make_rows(data, num_rows, dim)
    array = rows.numpy()
    knn_self_join(rows[: 5 * 512], k)  # compiles
    theirs: Times = ([], [])
    ours: Times = ([], [])
    for _ in range(repeats):
        their_ids = timed(lambda: faiss.knn(array, array, k + 1)[1], theirs)
        our_ids = timed(lambda: knn_self_join(rows, k)[0].numpy(), ours)
    same = float(np.mean(without_self(their_ids) == our_ids))
    (wall_a, cpu_a), (wall_b, cpu_b) = (
        [statistics.median(part) for part in times] for times in (theirs, ours)
    )
    print(
        f"{data:10} {num_rows:7d} {dim:4d} {wall_a:8.3f} {wall_b:8.3f} {wall_b / wall_a:6.2f} "
        f"{cpu_a:9.3f} {cpu_b:9.3f} {cpu_b / cpu_a:6.2f} {same:8.5f}",
        flush=True,
    )


def make_rows(data: str, num_rows: int, dim: int) -> torch.Tensor:
    """Unit rows: isotropic, or 100 Gaussian clusters."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(num_rows, dim, generator=generator)
    if data == "clustered":
        centers = torch.randn(100, dim, generator=generator)
        rows += centers[torch.randint(0, 100, (num_rows,), generator=generator)]
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
