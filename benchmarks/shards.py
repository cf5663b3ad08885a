"""How much a store gains or loses by being cut into shards, on the same cores.

One round (kNN graph from nothing, then propagation) on 1, 2 and 4 Ray shards that share all cores,
an update after 5 % of the nodes have moved, and the reads of a training batch. Shard counts are
interleaved; medians; ratios against one shard.

    python benchmarks/shards.py --nodes 20000 --dim 128 --k 15
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

CLASSES = 10
COLUMNS = ("build", "update", "solve", "batch_ms", "query_ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--k", type=int, default=15)
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex())
    import ray

    folder = tempfile.mkdtemp(prefix="lm-")
    ray.init(
        address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, _temp_dir=folder
    )
    try:
        results = measure(args)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    print(f"n = {args.nodes}, D = {args.dim}, k = {args.k}; {os.cpu_count()} cores; s, ms (ratio)")
    print("shards" + "".join(f"{name:>20}" for name in COLUMNS))
    first = results[args.shards[0]]
    for count in args.shards:
        cells = (f"{m:.4g} ({m / b:.2f})" for m, b in zip(results[count], first))
        print(f"{count:>6}" + "".join(f"{cell:>20}" for cell in cells))


def measure(args: argparse.Namespace) -> dict[int, list[float]]:
    from labelmesh.graph_store.facade import GraphStore

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(args.nodes, args.dim, generator=generator)
    labels = torch.full((args.nodes,), -1)
    labels[:100] = torch.arange(100) % CLASSES
    ids = torch.arange(args.nodes)
    stores = {}
    for count in args.shards:
        stores[count] = GraphStore.create(
            args.nodes, args.dim, CLASSES, args.k, num_shards=count, name=f"bench-{count}"
        )
        stores[count].put_labels(ids, labels)
    samples: dict[int, list[list[float]]] = {count: [] for count in args.shards}
    for repetition in range(args.repeat + 1):
        for count, store in stores.items():
            store.put(ids, x if repetition % 2 else -x.flip(0))  # all rows are elsewhere
            report = store.update_knn()
            assert report.rebuilt, report
            times = [report.seconds]
            moved = torch.randperm(args.nodes, generator=generator)[: args.nodes // 20]
            store.put(moved, torch.randn(len(moved), args.dim, generator=generator))
            report = store.update_knn()
            assert not report.rebuilt, report
            times.append(report.seconds)
            times.append(store.refresh(propagation(), round=repetition)["seconds_solve"])
            batch = torch.randint(args.nodes, (128,), generator=generator)
            times.append(milliseconds(partial(store.neighborhood, batch, hops=1, round=repetition)))
            times.append(milliseconds(partial(store.query, x[batch], k=args.k, round=repetition)))
            if repetition:  # the first one compiles
                samples[count].append(times)
    return {count: [median(column) for column in zip(*rows)] for count, rows in samples.items()}


def propagation() -> Callable[..., None]:
    def refresh(graph, state):  # type: ignore[no-untyped-def]
        from labelmesh.graph_store.solvers import local_global

        w = graph.affinity("power", gamma=3.0)
        local_global(w, state.labels, num_classes=CLASSES, tol=1e-6)

    return refresh


def milliseconds(call: Callable[[], object], times: int = 9) -> float:
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return 1e3 * median(taken)


if __name__ == "__main__":
    main()
