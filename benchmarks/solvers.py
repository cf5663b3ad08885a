"""Solvers on a whole graph against the packages that people use, on the same weights.

    python benchmarks/solvers.py --rows 50000 --threads 2
    python benchmarks/solvers.py --features runs/embeddings.npz --only laplace poisson
    python benchmarks/solvers.py --device cuda                       # also: own CPU against own GPU

Laplace and Poisson learning against `graphlearning` (pip install graphlearning==1.7.5; needed by
this script alone), which stops at an absolute residual: ours stops at the relative residual that
theirs has reached. Local and global consistency against scipy's conjugate gradients, class by
class. Medians of interleaved repetitions in wall-clock and CPU seconds and their ratios (above 1:
Labelmesh is faster); "residual" is the largest relative residual of a class after both, in the norm
of D^-1, computed alike; "agree" is the share of nodes with the same class in both answers; "MB" is
what a solve is documented to take at most beside its weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import scipy.sparse.linalg
import torch
from labelmesh.benchmarks.knn import load_rows, make_rows
from labelmesh.graph_store import solvers
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.kernels.csr import Csr
from labelmesh.graph_store.knn_graph import knn_graph
from labelmesh.graph_store.memory import solver_bytes
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

KINDS = ["laplace", "poisson", "local_global"]
ALPHA = 0.99
Matrix = Any


@dataclass(frozen=True)
class Case:
    """A graph, its labels, and the two ways of solving on it.

    Attributes:
        theirs, ours: Scores, (n, C).
        residual: Largest relative residual of a class.
    """

    name: str
    theirs: Callable[[], NDArray[np.float64]]
    ours: Callable[[float], NDArray[np.float64]]
    residual: Callable[[NDArray[np.float64]], float]
    num_entries: int
    num_bytes: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--data", default="clustered")
    parser.add_argument("--features", help="instead: a .npy or .npz file")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--labels-per-class", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    rows = load_rows(args.features) if args.features else make_rows(args.data, args.rows, args.dim)
    rows = rows[: args.rows]
    name = Path(args.features).stem if args.features else args.data
    print(f"{name}, n = {len(rows)}, {args.threads} threads, medians of {args.repeats}")
    print(
        f"{'solver':20} {'entries':>9} {'theirs s':>9} {'ours s':>8} {'faster':>7} {'cpu':>6} "
        f"{'their residual':>14} {'ours':>9} {'agree':>8} {'MB':>6}"
    )
    with threadpool_limits(args.threads):
        for case in cases(rows, args.only, args.labels_per_class):
            compare(case, args.repeats)
        if args.device != "cpu":
            compare_devices(rows, args.device, args.labels_per_class, args.repeats)


def cases(rows: torch.Tensor, only: list[str], per_class: int) -> list[Case]:
    made = []
    if "laplace" in only or "poisson" in only:
        w = knn_graph(rows, k=20).affinity("self_tuning")
        labels = give_labels(rows, 10, per_class)
        made += [build(w, labels) for kind, build in BUILDERS.items() if kind in only]
    if "local_global" in only:
        w = knn_graph(rows, k=50).affinity("self_tuning")
        for num_classes in (10, 100):
            made.append(local_global_case(w, give_labels(rows, num_classes, per_class)))
    return made


def give_labels(rows: torch.Tensor, num_classes: int, per_class: int) -> NDArray[np.int64]:
    """Classes are the nearest of some rows far apart; a few rows of each have their label."""
    generator = torch.Generator().manual_seed(1)
    centers = rows[torch.randperm(len(rows), generator=generator)[:num_classes]]
    nearest = (rows @ centers.T).argmax(1)
    labels = np.full(len(rows), -1)
    for c in range(num_classes):
        members = (nearest == c).nonzero()[:, 0]
        chosen = members[torch.randperm(len(members), generator=generator)[:per_class]]
        labels[chosen.numpy()] = c
    return labels


def laplace_case(w: LocalAffinity, labels: NDArray[np.int64]) -> Case:
    import graphlearning

    matrix, given = scipy.sparse.csr_matrix(w.to_scipy()), np.flatnonzero(labels >= 0)
    free, degrees = labels < 0, w.degrees.numpy()
    y = onehot(labels)

    def residual(u: NDArray[np.float64]) -> float:
        r = ((matrix @ u) - degrees[:, None] * u)[free]
        return relative(r, (matrix @ y)[free], degrees[free])

    def ours(tol: float) -> NDArray[np.float64]:
        return solvers.laplace(w, labels, tol=tol)  # type: ignore[no-any-return]

    def theirs() -> NDArray[np.float64]:
        return graphlearning.ssl.laplace(matrix).fit(given, labels[given])

    return Case("laplace C=10", theirs, ours, residual, *size(w, 10))


def poisson_case(w: LocalAffinity, labels: NDArray[np.int64]) -> Case:
    import graphlearning

    matrix, given = scipy.sparse.csr_matrix(w.to_scipy()), np.flatnonzero(labels >= 0)
    degrees = w.degrees.numpy()
    y = onehot(labels)
    sources = np.where((labels >= 0)[:, None], y - y.sum(0) / y.sum(), 0)

    def residual(u: NDArray[np.float64]) -> float:
        return relative(sources - degrees[:, None] * u + matrix @ u, sources, degrees)

    def ours(tol: float) -> NDArray[np.float64]:
        return solvers.poisson(w, labels, tol=tol)  # type: ignore[no-any-return]

    def theirs() -> NDArray[np.float64]:
        return graphlearning.ssl.poisson(matrix).fit(given, labels[given])

    return Case("poisson C=10", theirs, ours, residual, *size(w, 10))


def local_global_case(w: LocalAffinity, labels: NDArray[np.int64]) -> Case:
    matrix, num_classes = w.to_scipy(), int(labels.max()) + 1
    scale = scipy.sparse.diags_array(1 / np.sqrt(w.degrees.numpy()))
    system = scipy.sparse.csr_array(
        scipy.sparse.eye_array(len(labels)) - ALPHA * scale @ matrix @ scale
    )
    y = onehot(labels)

    def residual(f: NDArray[np.float64]) -> float:
        return relative(y - system @ f, y, np.ones(len(y)))

    def ours(tol: float) -> NDArray[np.float64]:
        return solvers.local_global(w, labels, alpha=ALPHA, tol=tol)  # type: ignore[no-any-return]

    def theirs() -> NDArray[np.float64]:
        columns = [
            scipy.sparse.linalg.cg(system, y[:, c], rtol=1e-6)[0] for c in range(num_classes)
        ]
        return np.stack(columns, axis=1)

    return Case(f"local_global C={num_classes}", theirs, ours, residual, *size(w, num_classes))


BUILDERS = {"laplace": laplace_case, "poisson": poisson_case}


def compare(case: Case, repeats: int) -> None:
    expected = case.theirs()
    reached = case.residual(expected)
    found = case.ours(reached)
    times: dict[str, tuple[list[float], list[float]]] = {"theirs": ([], []), "ours": ([], [])}
    for _ in range(repeats):
        for name, call in (("theirs", case.theirs), ("ours", lambda: case.ours(reached))):
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            times[name][0].append(time.perf_counter() - wall)
            times[name][1].append(time.process_time() - cpu)
    wall = {name: statistics.median(both[0]) for name, both in times.items()}
    cpu = {name: statistics.median(both[1]) for name, both in times.items()}
    agree = float((expected.argmax(1) == found.argmax(1)).mean())
    print(
        f"{case.name:20} {case.num_entries:9d} {wall['theirs']:9.3f} {wall['ours']:8.3f} "
        f"{wall['theirs'] / wall['ours']:7.2f} {cpu['theirs'] / cpu['ours']:6.2f} "
        f"{reached:14.2e} {case.residual(found):9.2e} {agree:8.5f} "
        f"{case.num_bytes / 2**20:6.0f}",
        flush=True,
    )


def compare_devices(rows: torch.Tensor, device: str, per_class: int, repeats: int) -> None:
    """Own CPU against own GPU, the weights being on each already."""
    w = knn_graph(rows, k=20).affinity("self_tuning")
    csr = w.csr
    there = LocalAffinity(
        Csr(csr.offsets.to(device), csr.cols.to(device), csr.vals.to(device), csr.num_cols)
    )
    labels = torch.from_numpy(give_labels(rows, 10, per_class))
    print(f"\n{device}: {torch.cuda.get_device_name() if device == 'cuda' else device}")
    for name, dtype, tol in (
        ("laplace", torch.float64, 1e-8),
        ("poisson", torch.float64, 1e-8),
        ("local_global", torch.float64, 1e-8),
        ("local_global", torch.float32, 1e-5),
    ):
        solve = getattr(solvers, name)
        medians = []
        for weights in (w, there):
            given = labels.to(weights.csr.cols.device)
            seconds = []
            for _ in range(repeats + 1):
                start = time.perf_counter()
                solve(weights, given, tol=tol, dtype=dtype).sum().item()
                seconds.append(time.perf_counter() - start)
            medians.append(statistics.median(seconds[1:]))
        print(
            f"{name:14} {str(dtype)[6:]:8} cpu {medians[0]:7.3f} s, {device} {medians[1]:7.4f} s, "
            f"{medians[0] / medians[1]:6.1f} times",
            flush=True,
        )


def onehot(labels: NDArray[np.int64]) -> NDArray[np.float64]:
    y = np.zeros((len(labels), int(labels.max()) + 1))
    y[np.flatnonzero(labels >= 0), labels[labels >= 0]] = 1
    return y


def relative(r: NDArray[Any], b: NDArray[Any], degrees: NDArray[Any]) -> float:
    norms = [np.sqrt((x**2 / degrees[:, None]).sum(0)) for x in (r, b)]
    return float((norms[0] / norms[1]).max())


def size(w: LocalAffinity, num_classes: int) -> tuple[int, int]:
    """Entries of the weights, and the bytes that a solve is documented to take."""
    num_entries = w.csr.cols.shape[0]
    return num_entries, solver_bytes(w.num_nodes, num_entries, num_classes)


if __name__ == "__main__":
    main()
