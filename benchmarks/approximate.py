"""Approximate kNN graphs against the exact build on the CPU, in one run.

    python benchmarks/approximate.py --rows 20000 --dim 64 --threads 1

Rows move by half the median k-th distance, a share of them or all. Prints the medians of
interleaved repetitions divided by those of the exact build (`knn_self_join`), in wall-clock and in
CPU seconds, and the recall at k on a sample of nodes with its 95 % interval. "stale" is the old
graph as it was; "width" is the length of the lists that are refined, of which the first k count.
PyNNDescent is not a dependency of Labelmesh: `pip install pynndescent`, or `--without-pynndescent`.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import faiss
import torch
from labelmesh.graph_store.faiss_index import FaissIvfIndex
from labelmesh.graph_store.kernels.knn import (
    canonical_distances,
    knn_blocked,
    knn_self_join,
    normalize_rows,
)
from labelmesh.graph_store.recall import Recall, choose_sample, recall_of
from labelmesh.graph_store.refine import Rule, build_approximate, refine_graph
from torch import Tensor

Step = Callable[[], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("-k", type=int, default=15)
    parser.add_argument("--widths", type=int, nargs="+", default=[15, 32])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.01, 0.05, 0.2, 1.0])
    parser.add_argument("--data", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--sample", type=int, default=2000)
    parser.add_argument("--without-pynndescent", action="store_true")
    args = parser.parse_args()
    build_other = None if args.without_pynndescent else pynndescent_builder(args.k, args.threads)
    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    warm_up(args.k, build_other)
    print(
        f"n = {args.rows}, d = {args.dim}, k = {args.k}, {args.threads} threads, medians of "
        f"{args.repeats}; times relative to the exact build"
    )
    print(f"{'data':10} {'moved':>6} {'method':24} {'wall':>6} {'cpu':>6}  recall")
    for kind in args.data:
        compare(kind, args, build_other)


def compare(
    kind: str, args: argparse.Namespace, build_other: Callable[[Tensor], Any] | None
) -> None:
    rows = normalize_rows(KINDS[kind](args.rows, args.dim, torch.Generator().manual_seed(0)))
    old, distances = knn_self_join(rows, max(args.widths))
    length = 0.5 * float(distances[:, args.k - 1].median())
    builds: dict[str, Step] = {
        "ours, from nothing": lambda: build_approximate(rows, args.k).neighbor_ids,
        "faiss ivf": lambda: ivf(rows, args.k),
    }
    index = build_other(rows) if build_other else None
    if build_other:
        builds["pynndescent"] = lambda: listed(build_other(rows))
    report(kind, "", rows, args, builds)
    for share in args.shares:
        moved = torch.rand(args.rows, generator=torch.Generator().manual_seed(1)) < share
        after = move(rows, moved, length)
        report(kind, f"{share:.0%}", after, args, updates(old, after, moved, index, args))


def updates(
    old: Tensor, after: Tensor, moved: Tensor, index: Any, args: argparse.Namespace
) -> dict[str, Step]:
    """Ways to follow the moved rows, by name."""

    def ours(width: int, rule: Rule) -> Step:
        lists = old[:, :width]
        return lambda: refine_graph(after, lists, width, moved=moved, rule=rule).neighbor_ids

    steps: dict[str, Step] = {"stale": lambda: old[:, : args.k]}
    for width in args.widths:
        steps[f"ours, width {width}"] = ours(width, Rule())
        steps[f"ours, width {width}, 1 round"] = ours(width, Rule(max_rounds=1))
    if index is not None:
        steps["pynndescent update"] = lambda: updated(index, after, moved)
    return steps


def report(
    kind: str, share: str, rows: Tensor, args: argparse.Namespace, steps: dict[str, Step]
) -> None:
    exact = "exact build"
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in (exact, *steps)}
    found: dict[str, Tensor] = {}
    for _ in range(args.repeats):
        for name, step in {exact: lambda: knn_self_join(rows, args.k)[0], **steps}.items():
            wall, cpu = time.perf_counter(), time.process_time()
            found[name] = step()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    base = [statistics.median(part) for part in zip(*times[exact])]
    sample = choose_sample(rows.shape[0], args.sample, 0)
    truth = knn_blocked(rows[sample], rows, args.k, query_ids=sample)[1]
    for name in steps:
        wall, cpu = (statistics.median(part) for part in zip(*times[name]))
        recall = recall_of_ids(rows, found[name][sample, : args.k], sample, truth)
        print(
            f"{kind:10} {share:>6} {name:24} {wall / base[0]:6.3f} {cpu / base[1]:6.3f}  "
            f"{recall.value:.4f} ({recall.low:.4f} to {recall.high:.4f})",
            flush=True,
        )


def recall_of_ids(rows: Tensor, ids: Tensor, sample: Tensor, truth: Tensor) -> Recall:
    """Recall of lists that came without canonical distances."""
    queries = rows[sample][:, None].expand(-1, ids.shape[1], -1).contiguous()
    distances = canonical_distances(queries, rows[ids.clamp(min=0)])
    return recall_of(ids, torch.where(ids < 0, torch.inf, distances), truth)


def move(rows: Tensor, moved: Tensor, length: float) -> Tensor:
    step = torch.randn(rows.shape, generator=torch.Generator().manual_seed(2))
    step *= length / torch.linalg.vector_norm(step, dim=1, keepdim=True)
    return normalize_rows(torch.where(moved[:, None], rows + step, rows))


def ivf(rows: Tensor, k: int) -> Tensor:
    ids = torch.arange(rows.shape[0])
    return FaissIvfIndex(rows, ids).search(rows, k, ids)[0]


def pynndescent_builder(k: int, threads: int) -> Callable[[Tensor], Any]:
    try:
        from pynndescent import NNDescent
    except ModuleNotFoundError as missing:
        raise SystemExit(
            "this comparison needs PyNNDescent: pip install pynndescent, or give "
            "--without-pynndescent"
        ) from missing
    # One more, because a row is its own first neighbour there.
    return lambda rows: NNDescent(
        rows.numpy(), n_neighbors=k + 1, n_jobs=threads, random_state=0, verbose=False
    )


def updated(index: Any, rows: Tensor, moved: Tensor) -> Tensor:
    """The graph after an update of a copy; the copying is counted too."""
    copied = copy.deepcopy(index)
    ids = moved.nonzero()[:, 0].tolist()
    copied.update(xs_updated=rows[moved].numpy(), updated_indices=ids)
    return listed(copied)


def listed(index: Any) -> Tensor:
    """A PyNNDescent graph without the rows themselves."""
    ids = torch.from_numpy(index.neighbor_graph[0]).to(torch.int64)
    is_self = ids == torch.arange(ids.shape[0])[:, None]
    is_self[~is_self.any(1), -1] = True
    return ids[~is_self].reshape(ids.shape[0], -1)


def warm_up(k: int, build_other: Callable[[Tensor], Any] | None) -> None:
    """Compile everything."""
    rows = normalize_rows(random_rows(3000, 16, torch.Generator().manual_seed(0)))
    ids = knn_self_join(rows, k)[0]
    moved = torch.arange(3000) % 9 == 0
    refine_graph(rows, ids, k, moved=moved)
    if build_other:
        updated(build_other(rows), rows, moved)


def random_rows(num_rows: int, dim: int, generator: torch.Generator) -> Tensor:
    return torch.randn(num_rows, dim, generator=generator)


def clustered_rows(num_rows: int, dim: int, generator: torch.Generator) -> Tensor:
    """100 Gaussian clusters."""
    centers = torch.randn(100, dim, generator=generator)
    labels = torch.randint(0, 100, (num_rows,), generator=generator)
    return torch.randn(num_rows, dim, generator=generator) + centers[labels]


def manifold_rows(num_rows: int, dim: int, generator: torch.Generator) -> Tensor:
    """10 classes of intrinsic dimension 8, bent by a tanh."""
    maps = torch.randn(10, 8, dim, generator=generator)
    shifts = torch.randn(10, dim, generator=generator)
    labels = torch.randint(0, 10, (num_rows,), generator=generator)
    inner = torch.randn(num_rows, 8, generator=generator)
    rows = torch.empty(num_rows, dim)
    for label in range(10):
        own = labels == label
        rows[own] = torch.tanh(inner[own] @ maps[label] / 2) + shifts[label]
    return rows


KINDS = {"random": random_rows, "clustered": clustered_rows, "manifold": manifold_rows}

if __name__ == "__main__":
    main()
