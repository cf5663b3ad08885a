"""k-means against scikit-learn from the same start, in one run.

    python benchmarks/kmeans.py --rows 10000 50000 --clusters 10 50 200 --threads 2
    python benchmarks/kmeans.py --features runs/embeddings.npz --unit

"lloyd": from the same rows, until no label changes, against `KMeans(algorithm="lloyd", tol=0)` on
the features' dtype. scikit-learn adds float32 up in float32 and may end elsewhere, after fewer or
more iterations; so it runs as many as ours took, at most, and its seconds are per iteration.
"seeding": greedy k-means++ against `kmeans_plusplus`. Medians of interleaved repetitions in
wall-clock and CPU seconds and their ratios (above 1: Labelmesh is faster). "objective" is ours
divided by theirs; "same" is the share of equal labels in float64, where both must agree.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from labelmesh.benchmarks.knn import load_rows, make_rows
from labelmesh.graph_store.kernels.fixed_point import make_grid
from labelmesh.graph_store.solvers import KMeans, kmeans
from labelmesh.graph_store.solvers.kmeans_seeding import OwnRows, plusplus
from sklearn.cluster import KMeans as TheirKMeans
from sklearn.cluster import kmeans_plusplus
from threadpoolctl import threadpool_limits
from torch import Tensor

Call = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 50_000])
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--data", default="clustered")
    parser.add_argument("--features", nargs="*", default=[], help="instead: .npy or .npz files")
    parser.add_argument("--unit", action="store_true", help="give rows length 1")
    parser.add_argument("--clusters", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--max-iter", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seeding", action="store_true", help="compare that too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{args.threads} threads, medians of {args.repeats}")
    print(
        f"{'data':12} {'n':>7} {'K':>4} {'what':8} {'theirs s':>9} {'ours s':>8} {'faster':>7} "
        f"{'cpu':>6} {'iterations':>12} {'objective':>10} {'same':>8}"
    )
    warnings.simplefilter("ignore")  # theirs has not converged after as many iterations
    with threadpool_limits(args.threads):
        for name, rows in data(args):
            for k in args.clusters:
                compare_lloyd(name, rows, k, args.max_iter, args.repeats)
                if args.seeding:
                    compare_seeding(name, rows, k, args.repeats)


def data(args: argparse.Namespace) -> list[tuple[str, Tensor]]:
    if args.features:
        cases = [(Path(path).stem[-12:], load_rows(path)) for path in args.features]
    else:
        cases = [(args.data, make_rows(args.data, n, args.dim)) for n in args.rows]
    if args.unit:
        cases = [(name, torch.nn.functional.normalize(rows)) for name, rows in cases]
    return cases


def compare_lloyd(name: str, rows: Tensor, k: int, max_iter: int, repeats: int) -> None:
    picked = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))[:k]
    init = rows[picked]

    def ours(x: Tensor) -> KMeans:
        return kmeans(x, k, seed=0, init=init, max_iter=max_iter)  # type: ignore[no-any-return]

    def theirs(x: Tensor, most: int) -> Any:
        start = init.to(x.dtype).numpy()
        model = TheirKMeans(k, init=start, n_init=1, max_iter=most, tol=0, algorithm="lloyd")
        return model.fit(x.numpy())

    found = ours(rows)
    expected = theirs(rows, found.iterations)
    wide = rows.double()
    same = (ours(wide).labels.numpy() == theirs(wide, max_iter).labels_).mean()
    (their_wall, their_cpu), (wall, cpu) = timed(
        [lambda: theirs(rows, found.iterations), lambda: ours(rows)], repeats
    )
    share = found.iterations / expected.n_iter_
    print(
        f"{name:12} {len(rows):7d} {k:4d} {'lloyd':8} {their_wall * share:9.3f} {wall:8.3f} "
        f"{their_wall * share / wall:7.2f} {their_cpu * share / cpu:6.2f} "
        f"{f'{found.iterations}/{expected.n_iter_}':>12} "
        f"{found.objective / expected.inertia_:10.6f} {same:8.5f}",
        flush=True,
    )


def compare_seeding(name: str, rows: Tensor, k: int, repeats: int) -> None:
    grid = make_grid(float(rows.abs().max()), len(rows), rows.shape[1])
    own = OwnRows(rows, torch.arange(len(rows)), grid, lambda x: x, lambda x: x)
    array = rows.numpy()

    def cost(centers: Tensor) -> float:
        return float(torch.cdist(rows, centers.float()).amin(1).double().square().sum())

    (their_wall, their_cpu), (wall, cpu) = timed(
        [lambda: kmeans_plusplus(array, k, random_state=0), lambda: plusplus(own, k, seed=0)],
        repeats,
    )
    ratios = [
        cost(plusplus(own, k, seed=s) / grid.scale)
        / cost(torch.from_numpy(kmeans_plusplus(array, k, random_state=s)[0]))
        for s in range(repeats)
    ]
    print(
        f"{name:12} {len(rows):7d} {k:4d} {'seeding':8} {their_wall:9.3f} {wall:8.3f} "
        f"{their_wall / wall:7.2f} {their_cpu / cpu:6.2f} {'':12} "
        f"{statistics.median(ratios):10.6f}",
        flush=True,
    )


def timed(calls: list[Call], repeats: int) -> list[tuple[float, float]]:
    """Medians of wall-clock and CPU seconds of interleaved calls."""
    seconds: list[tuple[list[float], list[float]]] = [([], []) for _ in calls]
    for _ in range(repeats):
        for call, (walls, cpus) in zip(calls, seconds):
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    return [(statistics.median(walls), statistics.median(cpus)) for walls, cpus in seconds]


if __name__ == "__main__":
    main()
