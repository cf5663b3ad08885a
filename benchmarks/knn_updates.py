"""Updates of a kept kNN graph against building it anew, in one run.

    python benchmarks/knn_updates.py --rows 60000 --dim 128 --threads 2
    python benchmarks/knn_updates.py --features runs/drift/dag --slack 64
    python benchmarks/knn_updates.py --parts pynndescent --data clustered

Synthetic rows: a share of them moves by half of r_k (the median distance of the k-th neighbour),
or all of them drift by a share of r_k, alone or with a common rotation on top. `--features` takes
consecutive files `round-*.npz` that `drift.py` recorded, `labels` and all; each update starts from
the graph that the one before it left.

Repetitions are interleaved, each update on a copy of the kept graph. Ratios are of medians; below 1
the update is cheaper than `labelmesh.knn_graph` with `slack=0`. K is the size of the kept lists,
"build" the CPU ratio of a first build with them; "how" says whether the update followed the motion
or built anew, "same" whether all ids equal those of the rebuilt graph. On a busy machine take
`--threads 1`: threads that wait for each other count as CPU time.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import labelmesh as lm
import numpy as np
import torch
from knn import make_rows
from labelmesh.graph_store.kernels.knn import normalize_rows
from torch import Tensor

T = TypeVar("T")
SHARES_MOVED = (0.001, 0.01, 0.05, 0.2)
DRIFTS = (0.0025, 0.005, 0.01, 0.02)
HEADER = (
    f"{'data':10} {'change':19} {'K':>4} {'how':>6} {'searched':>8} {'certified':>9} "
    f"{'dist/n^2':>8} {'wall':>6} {'CPU':>6} {'build':>6} {'anew s':>7} {'same':>5} {'bound':>6} "
    f"{'changed':>7}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("-k", type=int, default=15)
    parser.add_argument("--data", nargs="+", default=["random", "clustered", "manifold"])
    parser.add_argument("--parts", nargs="+", default=["moved", "drift", "rotated"])
    parser.add_argument("--features", type=Path, help="folder of recorded rounds")
    parser.add_argument(
        "--slack",
        type=int,
        help="size of the kept lists; default: 32 or 64, for --features by itself",
    )
    parser.add_argument("--eta", type=float, default=0.0, help="tolerated error of distances")
    parser.add_argument("--metric", choices=["cosine", "euclidean"], default="cosine")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    small = make_rows("clustered", 3000, args.dim)
    lm.knn_graph(small, args.k, args.metric, slack=32).update(step(small, 0.01, seed=1))  # compiles
    print(f"k = {args.k}, eta = {args.eta}, {args.threads} threads, medians of {args.repeats}")
    if args.features is not None:
        measure_recorded(args)
        return
    print(HEADER)
    for data in args.data:
        rows = make_rows(data, args.rows, args.dim)
        unit = float(edge_lengths(lm.knn_graph(rows, args.k, slack=0))[:, -1].median())
        if "pynndescent" in args.parts:
            measure_pynndescent(data, rows, unit, args)
        for change, slack, after in changes(rows, unit, args.parts):
            size, build = args.slack or slack, Times()
            graph = build.take(
                lambda rows=rows, size=size: lm.knn_graph(rows, args.k, args.metric, slack=size)  # type: ignore[misc]
            )
            compare(data, change, size, graph, after, args, build)


# Rows


def step(rows: Tensor, length: float, *, seed: int) -> Tensor:
    """Every row moved by `length` in a direction of its own, and back onto the sphere."""
    generator = torch.Generator().manual_seed(seed)
    ways = normalize_rows(torch.randn(rows.shape, generator=generator))
    return normalize_rows(rows + length * ways)


def some_order(count: int) -> Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(2))


def changes(rows: Tensor, unit: float, parts: list[str]) -> Iterator[tuple[str, int, Tensor]]:
    """What happens, the usual slack for it, and the rows afterwards."""
    if "moved" in parts:
        order = some_order(len(rows))
        for share in SHARES_MOVED:
            moved = order[: round(share * len(rows))]
            after = rows.clone()
            after[moved] = step(rows[moved], 0.5 * unit, seed=3)
            yield f"{share:.1%} move 0.5 r_k", 32, after
    if "drift" in parts:
        for length in DRIFTS:
            yield f"all drift {length:.2%} r_k", 64, step(rows, length * unit, seed=4)
    if "rotated" in parts:
        dim = rows.shape[1]
        gauss = torch.randn(dim, dim, generator=torch.Generator().manual_seed(5))
        rotation = torch.linalg.matrix_exp(0.01 * (gauss - gauss.T))
        turned = step(rows, DRIFTS[0] * unit, seed=4) @ rotation
        yield f"turned + {DRIFTS[0]:.2%} r_k", 64, normalize_rows(turned)


# Measurements


@dataclass
class Times:
    """Wall-clock and CPU seconds of one call, repetition by repetition."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def take(self, call: Callable[[], T]) -> T:
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        self.wall.append(time.perf_counter() - wall)
        self.cpu.append(time.process_time() - cpu)
        return result

    def ratios(self, base: Times) -> tuple[float, float]:
        median = statistics.median
        return median(self.wall) / median(base.wall), median(self.cpu) / median(base.cpu)


def compare(
    data: str,
    change: str,
    slack: int | None,
    graph: Any,
    after: Tensor,
    args: argparse.Namespace,
    build: Times | None = None,
) -> Any:
    """Update and rebuild in turn; prints a line and returns the updated graph."""
    ours, anew = Times(), Times()
    for _ in range(args.repeats):
        rebuilt = anew.take(lambda: lm.knn_graph(after, args.k, args.metric, slack=0))
        # an update takes over what the graph keeps
        kept = copy.deepcopy(graph)
        updated, report = ours.take(lambda kept=kept: kept.update(after, eta=args.eta))  # type: ignore[misc]
    wall, cpu = ours.ratios(anew)
    first = f"{build.ratios(anew)[1]:6.2f}" if build is not None else " " * 6
    same = bool((updated.ids == rebuilt.ids).all())
    rows = len(after)
    print(
        f"{data:10} {change:19} {slack or 'auto':>4} {'build' if report.rebuilt else 'follow':>6} "
        f"{report.searched / rows:8.2%} {report.certified / rows:9.2%} "
        f"{report.distances / rows**2:8.4f} {wall:6.3f} {cpu:6.3f} {first} "
        f"{statistics.median(anew.wall):7.2f} {'yes' if same else 'no':>5} {report.bound:6.3f} "
        f"{report.changed / rows:7.1%}",
        flush=True,
    )
    return updated


def measure_recorded(args: argparse.Namespace) -> None:
    """Consecutive recorded rounds, each update from the graph that the last one left."""
    print(HEADER)
    graph: Any = None
    for file in sorted(args.features.glob("round-*.npz")):
        with np.load(file) as arrays:
            rows = torch.from_numpy(arrays["features"])
        if graph is None:
            graph = lm.knn_graph(rows, args.k, args.metric, slack=args.slack)
        else:
            name, change = args.features.name, f"to {file.stem}"
            graph = compare(name, change, args.slack, graph, rows, args)
    if graph is None:
        raise SystemExit(f"{args.features} holds no round-*.npz; record them with drift.py")


def measure_pynndescent(data: str, rows: Tensor, unit: float, args: argparse.Namespace) -> None:
    """PyNNDescent's own update for 1 % of the rows moved: times against ours, and recall."""
    try:
        from pynndescent import NNDescent
    except ImportError:
        raise SystemExit(
            "this part needs PyNNDescent: pip install pynndescent, or leave `pynndescent` out of "
            "--parts"
        ) from None
    moved = some_order(len(rows))[: len(rows) // 100]
    after = rows.clone()
    after[moved] = step(rows[moved], 0.5 * unit, seed=3)

    def build(x: Tensor) -> Any:
        # their lists hold the row itself
        return NNDescent(
            x.numpy().copy(),
            metric="euclidean",
            n_neighbors=args.k + 1,
            random_state=0,
            n_jobs=args.threads,
        )

    def update(index: Any) -> Any:
        index.update(xs_updated=after[moved].numpy(), updated_indices=moved.numpy())
        return index

    small = build(rows[:3000])
    small.update(xs_updated=rows[:10].numpy(), updated_indices=np.arange(10))  # compiles
    first = build(rows)
    graph = lm.knn_graph(rows, args.k, args.metric, slack=args.slack or 32)
    theirs, their_build, ours, anew = Times(), Times(), Times(), Times()
    for _ in range(args.repeats):
        index = copy.deepcopy(first)
        index = theirs.take(lambda index=index: update(index))  # type: ignore[misc]
        built = their_build.take(lambda: build(after))
        exact = anew.take(lambda: lm.knn_graph(after, args.k, args.metric, slack=0))
        kept = copy.deepcopy(graph)
        ours.take(lambda kept=kept: kept.update(after))  # type: ignore[misc]
    print(f"{data}: 1 % move 0.5 r_k; seconds (wall, CPU) and recall@{args.k}")
    for name, times, found in (
        ("labelmesh rebuild", anew, exact.ids),
        ("labelmesh update", ours, exact.ids),
        ("pynndescent build", their_build, neighbors(built)),
        ("pynndescent update", theirs, neighbors(index)),
    ):
        wall, cpu = statistics.median(times.wall), statistics.median(times.cpu)
        print(f"  {name:20} {wall:8.3f} {cpu:8.3f} {recall(found, exact.ids):8.4f}", flush=True)


def neighbors(index: Any) -> Tensor:
    """PyNNDescent's neighbours with each row itself marked -1."""
    ids = torch.from_numpy(index.neighbor_graph[0].astype(np.int64))
    return ids.masked_fill(ids == torch.arange(len(ids))[:, None], -1)


def recall(found: Tensor, truth: Tensor) -> float:
    hits = [(truth[:, j : j + 1] == found).any(1) for j in range(truth.shape[1])]
    return float(torch.stack(hits).double().mean())


def edge_lengths(graph: Any) -> Tensor:
    return torch.as_tensor(graph.distances)


if __name__ == "__main__":
    main()
