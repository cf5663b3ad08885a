"""The exact kNN graph on a device: against the bare products, against faiss, and its updates.

    python benchmarks/knn_gpu.py --rows 1000000 --dim 128 -k 15
    python benchmarks/knn_gpu.py --device cpu --rows 4000 --repeats 1   # does the script work?

Prints medians of interleaved repetitions. "products" is the time of the same matrix products with
nothing else done, in the same blocks, each pair of blocks once: what an exact self-join by products
cannot go below. "share" is that time divided by ours. Faiss (`IndexFlatL2`, float32) runs on the
GPU where it is built for one, else not at all; "same" is the share of its ids that are ours.
Updates move some rows by half the median distance to the k-th neighbour, as a share of the time of
a build of the same graph.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from labelmesh.graph_store.incremental import LiveGraph
from labelmesh.graph_store.kernels import knn_device, offers
from labelmesh.graph_store.kernels.knn import make_bank, make_search, normalize_rows
from labelmesh.graph_store.kernels.list_types import Framed
from labelmesh.graph_store.kernels.rounding import PRECISIONS, Precision, half_lengths, round_to
from labelmesh.graph_store.partition import Partition
from labelmesh.graph_store.peers import Peers
from torch import Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("-k", type=int, default=15)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--moved", type=float, nargs="+", default=[0.01, 0.05, 0.2])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    device = torch.device(args.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}: n = {args.rows}, d = {args.dim}, k = {args.k}, medians of {args.repeats}")
    rows = make_rows(args.rows, args.dim).to(device)
    compare_builds(rows, args.k, args.precisions, args.repeats)
    follow(rows, args.k, args.moved, args.repeats)


def compare_builds(rows: Tensor, k: int, precisions: list[Precision], repeats: int) -> None:
    own = torch.arange(len(rows), device=rows.device)
    task = make_search(make_bank(rows, own, "euclidean"), rows, k, own)
    calls: dict[str, Callable[[], Any]] = {}
    for precision in precisions:
        calls[f"products {precision}"] = lambda p=precision: products(rows, p)
        calls[f"self-join {precision}"] = lambda p=precision: knn_device.self_join(
            task, precision=p
        )
    theirs = faiss_search(rows, k)
    if theirs is not None:
        calls["faiss"] = theirs
    times: dict[str, list[float]] = {name: [] for name in calls}
    found: dict[str, Any] = {}
    for repeat in range(repeats + 1):  # the first one warms up
        for name, call in calls.items():
            seconds, found[name] = timed(call, rows.device)
            times[name] += [seconds] if repeat else []
    median = {name: statistics.median(values) for name, values in times.items()}
    print(f"{'precision':10} {'products s':>10} {'self-join s':>11} {'share':>6} {'TFLOP/s':>8}")
    for precision in precisions:
        bare, ours = median[f"products {precision}"], median[f"self-join {precision}"]
        rate = rows.shape[0] ** 2 * rows.shape[1] / ours / 1e12
        print(f"{precision:10} {bare:10.3f} {ours:11.3f} {bare / ours:6.2f} {rate:8.3f}")
    ids = found[f"self-join {precisions[0]}"][0]
    for precision in precisions[1:]:
        assert torch.equal(found[f"self-join {precision}"][0], ids), precision
    if theirs is None:
        print("faiss has no GPU here")
    else:
        best = min(median[f"self-join {p}"] for p in precisions)
        same = float(np.mean(found["faiss"] == ids.cpu().numpy()))
        print(
            f"faiss {median['faiss']:.3f} s, ours / faiss {best / median['faiss']:.2f}, {same=:.5f}"
        )


def follow(rows: Tensor, k: int, moved: list[float], repeats: int) -> None:
    """Time a build of the followed graph and its updates."""
    active = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    live = LiveGraph(Peers(Partition.even(len(rows), 1)), k)
    build = []
    for _ in range(repeats):
        live = LiveGraph(Peers(Partition.even(len(rows), 1)), k)
        build.append(timed(lambda graph=live: graph.update(rows, active), rows.device)[0])
    whole = statistics.median(build)
    step = 0.5 * float(live.distances[:, -1].median())
    print(f"build of the followed graph {whole:.3f} s")
    print(f"{'moved':>6} {'seconds':>8} {'share':>6} {'scanned':>8} {'pairs':>6}")
    generator = torch.Generator().manual_seed(1)
    for share in moved:
        times, report = [], None
        for _ in range(repeats):
            rows = move(rows, share, step, generator)
            seconds, report = timed(lambda x=rows: live.update(x, active), rows.device)
            times.append(seconds)
        assert report is not None
        median, pairs = statistics.median(times), len(rows) * (len(rows) - 1) / 2
        print(
            f"{share:6.3f} {median:8.3f} {median / whole:6.3f} "
            f"{report.searched / len(rows):8.4f} {report.distances / pairs:6.3f}"
        )


def products(rows: Tensor, precision: Precision) -> None:
    """All products of the self-join, in its blocks; nothing is kept."""
    rounded = round_to(rows, precision)
    ids = torch.arange(len(rows), dtype=torch.int32, device=rows.device)
    framed = Framed(rounded.values, half_lengths(rounded), ids, rounded.unit, precision)
    starts = range(0, len(rows), offers.BLOCK)
    with offers.products_in(precision, rows.device):
        for number, a in enumerate(starts):
            for b in starts[number:]:
                offers.products(
                    framed.part(slice(a, a + offers.BLOCK)), framed.part(slice(b, b + offers.BLOCK))
                )


def faiss_search(rows: Tensor, k: int) -> Callable[[], Any] | None:
    """A search with faiss on the GPU, without the rows themselves; None where it has none."""
    import faiss

    if rows.device.type != "cuda" or not hasattr(faiss, "StandardGpuResources"):
        return None
    array = rows.cpu().numpy()
    index = faiss.GpuIndexFlatL2(faiss.StandardGpuResources(), rows.shape[1])
    index.add(array)

    def search() -> Any:
        ids = index.search(array, k + 1)[1]
        is_self = ids == np.arange(len(ids))[:, None]
        is_self[~is_self.any(1), -1] = True
        return ids[~is_self].reshape(len(ids), -1)

    return search


def make_rows(num_rows: int, dim: int) -> Tensor:
    """Unit rows in 100 Gaussian clusters."""
    generator = torch.Generator().manual_seed(0)
    centers = torch.randn(100, dim, generator=generator)
    cluster = torch.randint(0, 100, (num_rows,), generator=generator)
    return normalize_rows(torch.randn(num_rows, dim, generator=generator) + centers[cluster])


def move(rows: Tensor, share: float, step: float, generator: torch.Generator) -> Tensor:
    """A copy in which a share of the rows has gone some way in random directions."""
    some = torch.rand(len(rows), generator=generator).to(rows.device) < share
    noise = torch.randn(int(some.sum()), rows.shape[1], generator=generator).to(rows.device)
    moved = rows.clone()
    moved[some] += step * noise / torch.linalg.vector_norm(noise, dim=1, keepdim=True)
    return moved


def timed(call: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    wait(device)
    began = time.perf_counter()
    found = call()
    wait(device)
    return time.perf_counter() - began, found


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
