"""A graph sweep on digits against the naive way: a fresh GraphLabeler for every fold of a point.

    python benchmarks/graph_sweep.py --labels-per-class 10 --workers 2

Both score the same points on the same folds. The naive way searches neighbours and solves once per
fold, and is timed on a few points and folds that are drawn by a seed; its time per point is the
mean over these times the number of folds. "ratio": CPU time of a point, naive over ours (above 1:
the sweep is faster); "agree": naive scores that are the sweep's.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from labelmesh import GraphLabeler
from labelmesh.graph_store.labeling import Propagation
from labelmesh.tune.graph_folds import Splits, deal_folds
from labelmesh.tune.graph_params import solver
from labelmesh.tune.graph_source import search
from labelmesh.tune.graph_spec import GraphSweep, parse_graph_sweep
from labelmesh.tune.graph_sweep import run_graph_sweep
from labelmesh.tune.graph_workers import on_threads
from labelmesh.tune.points import Point
from sklearn.datasets import load_digits

SPACES: dict[str, dict[str, Any]] = {
    "laplace": {"tau": {"loguniform": [1e-4, 1e-1]}},
    "local_global": {"alpha": {"uniform": [0.5, 0.99]}},
    "poisson": {},
    "density_paths": {"sigma": {"uniform": [5.0, 40.0]}},
}
TOL = 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--labels-per-class", type=int, default=10)
    parser.add_argument("--points", type=int, default=48, help="per method")
    parser.add_argument("--repeats", type=int, default=10, help="deals of five folds")
    parser.add_argument("--naive", type=int, default=6, help="points of the naive way")
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    x, truth = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    labels = np.full(len(x), -1)
    for c in range(10):
        labels[rng.choice(np.flatnonzero(truth == c), args.labels_per_class, replace=False)] = c
    rows, given = torch.from_numpy(x.astype(np.float32)), torch.from_numpy(labels)
    print(f"{len(x)} digits, {10 * args.labels_per_class} labels, {args.repeats} x 5 folds")
    print("method          points a minute  (a core)   ms a point  naive ms a point  ratio  agree")
    for method, space in SPACES.items():
        sweep = make_sweep(method, space, args)
        _run(sweep, rows, given, 1, warm_up=True)
        wall, cpu, points, splits = _run(sweep, rows, given, args.workers)
        naive, agree = naive_seconds(points, splits, rows, given, args.naive)
        count = len(points)
        print(
            f"{method:15s} {60 * count / wall:15.0f} {60 * count / cpu:10.0f} "
            f"{1e3 * cpu / count:12.1f} {1e3 * naive * len(splits.hidden):17.0f} "
            f"{naive * len(splits.hidden) * count / cpu:6.0f}  {agree}"
        )


def make_sweep(method: str, space: dict[str, Any], args: argparse.Namespace) -> GraphSweep:
    raw = {
        "tol": TOL,
        "search": {"num_samples": args.points},
        "folds": {"repeats": args.repeats},
        "set": {"method": method},
        "space": {"k": {"int": [5, 40], "log": True}, **space},
    }
    return parse_graph_sweep(raw, name=method, source=method)


def _run(
    sweep: GraphSweep, rows: Any, labels: Any, workers: int, *, warm_up: bool = False
) -> tuple[float, float, list[Point], Splits]:
    """Wall-clock and CPU seconds, the search of neighbours included; the points, the folds."""
    if warm_up:
        sweep = sweep.model_copy(
            update={"search": sweep.search.model_copy(update={"num_samples": 2})}
        )
    wall, cpu = time.perf_counter(), time.process_time()
    snapshot = search(rows, labels, 10, k=sweep.max_k, metric="euclidean")
    result = run_graph_sweep(sweep, snapshot, runner=partial(on_threads, num_workers=workers))
    times = time.perf_counter() - wall, time.process_time() - cpu
    splits = deal_folds(labels, 10, repeats=sweep.folds.repeats)
    return *times, list(result.points), splits


def naive_seconds(
    points: list[Point], splits: Splits, rows: Any, labels: Any, count: int
) -> tuple[float, str]:
    """Mean CPU seconds of a fit, and how many of these folds have the sweep's score."""
    rng, same, spent = np.random.default_rng(0), 0, 0.0
    for point in rng.choice(np.array(points, dtype=object), count):
        how: Propagation = solver(point.params, TOL).how
        fold = int(rng.integers(len(splits.hidden)))
        hidden = splits.given.node_ids[splits.hidden[fold]].numpy()
        y = labels.numpy().copy()
        y[hidden] = -1
        began = time.process_time()
        options = {"alpha": how.alpha, "tau": how.tau, "sigma": how.sigma, "tol": how.tol}
        fitted = GraphLabeler(how.method, point.params["k"], **options).fit(rows.numpy(), y)
        spent += time.process_time() - began
        right = float((fitted.transduction_[hidden] == labels.numpy()[hidden]).mean())
        same += abs(right - point.scores[fold]) < 1e-9
    return spent / count, f"{same}/{count}"


if __name__ == "__main__":
    main()
