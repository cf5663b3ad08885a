"""Does cross-validation on few labels choose a better graph? Fashion-MNIST subsets, label draws.

    python benchmarks/graph_choice.py --data data/fashion-mnist --seeds 0 1 2 3 4

For every seed, 10,000 images and 10 labels per class are drawn; a sweep over the graph of their
pixels (cosine) is scored on hidden labels alone; the default and the chosen point are then
judged once on the true classes of all other nodes. With --oracle also the point that is best by the
truth, which nobody can know: what a perfect choice would give. Reports are written to --out.
"""

from __future__ import annotations

import argparse
import statistics
from typing import Any

import torch
from labelmesh.datasets.files import join, read_columns
from labelmesh.datasets.reader import Reader
from labelmesh.datasets.truth import load_truth
from labelmesh.graph_store.labeling import Propagator
from labelmesh.graph_store.solvers import density_paths
from labelmesh.trainers.methods.dag import labels_where_paths_join
from labelmesh.tune.graph_params import Params, solver
from labelmesh.tune.graph_points import Snapshot
from labelmesh.tune.graph_source import search
from labelmesh.tune.graph_spec import load_graph_sweep
from labelmesh.tune.graph_sweep import run_graph_sweep
from labelmesh.tune.report import write_sweep_report

NUM_NODES, CLASSES, TOL = 10_000, 10, 1e-6
# What the shipped configurations have; but all paths count, as there is no network here whose
# prediction a node without a label could keep.
DEFAULTS: dict[str, Params] = {
    "graph-dag": {"method": "density_paths", "k": 15, "sigma": 0.6, "paths": "join"},
    "graph-laplace": {"method": "laplace", "k": 15, "tau": 0.0, "affinity": "self_tuning"},
    "graph-lpdssl": {
        "method": "local_global",
        "k": 15,
        "alpha": 0.99,
        "affinity": "power",
        "gamma": 3.0,
        "balance_classes": False,
    },
}
SET: dict[str, Params] = {
    "graph-dag": {"space.paths": {"choice": ["join"]}, "unreached": 0.0},
    "graph-lpdssl": {"set.balance_classes": False},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="imported Fashion-MNIST")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--labels-per-class", type=int, default=10)
    parser.add_argument("--sweeps", nargs="+", default=list(DEFAULTS))
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="of the sweeps")
    parser.add_argument("--out", default="sweeps")
    parser.add_argument("--oracle", action="store_true", help="judge all points by the truth, too")
    args = parser.parse_args()
    gains: dict[str, list[float]] = {}
    for seed in args.seeds:
        features, truth, labels = draw(args.data, args.labels_per_class, seed)
        snapshot = search(features, labels, CLASSES, k=50, metric="cosine")
        for name in args.sweeps:
            gain = one_sweep(name, snapshot, truth, seed, args)
            gains.setdefault(name, []).append(gain)
    for name, values in gains.items():
        mean = statistics.fmean(values)
        sd = statistics.stdev(values) if len(values) > 1 else float("nan")
        better = sum(value > 0 for value in values)
        print(f"{name}: {mean:+.2f} ± {sd:.2f} points, better on {better} of {len(values)} draws")


def draw(uri: str, per_class: int, seed: int) -> tuple[Any, Any, Any]:
    """Pixels of random training images, their true classes, and a few labels."""
    generator = torch.Generator().manual_seed(seed)
    split = read_columns(join(uri, "manifest.parquet"), ["split"])["split"]
    train = torch.tensor([row for row, name in enumerate(split.to_pylist()) if name == "train"])
    rows = train[torch.randperm(len(train), generator=generator)[:NUM_NODES]].sort().values
    truth = load_truth(uri, rows)
    labels = torch.full_like(truth, -1)
    for c in range(CLASSES):
        own = (truth == c).nonzero()[:, 0]
        labels[own[torch.randperm(len(own), generator=generator)[:per_class]]] = c
    images = Reader(uri, rows, labels).read(torch.arange(NUM_NODES)).inputs
    return images.reshape(NUM_NODES, -1).to(torch.float32), truth, labels


def one_sweep(
    name: str, snapshot: Snapshot, truth: Any, seed: int, args: argparse.Namespace
) -> float:
    """Prints the default's and the chosen point's accuracy; returns the gain in points."""
    overrides = dict(pair.split("=", 1) for pair in args.set)
    parsed = {key: float(value) if "." in value else int(value) for key, value in overrides.items()}
    sweep = load_graph_sweep(name, {**SET.get(name, {}), **parsed})
    result = run_graph_sweep(sweep, snapshot)
    write_sweep_report(result, f"{args.out}/{name}-seed{seed}")
    default, chosen = DEFAULTS[name], dict(result.best.params)
    before, after = (judge(snapshot, truth, params) for params in (default, chosen))
    shown = ", ".join(
        f"{k} {v:.3g}" if isinstance(v, float) else f"{k} {v}" for k, v in chosen.items()
    )
    print(
        f"{name} seed {seed}: default {before:.2f} %, chosen {after:.2f} % ({shown}; "
        f"cross-validated {100 * result.best.mean:.1f} ± {100 * result.best.sd:.1f})",
        flush=True,
    )
    if args.oracle:
        found = max(judge(snapshot, truth, dict(p.params)) for p in result.points if p.scores)
        print(f"    oracle {found:.2f} %", flush=True)
    return after - before


def judge(snapshot: Snapshot, truth: Any, params: Params) -> float:
    """Unlabeled nodes that get their true class, in percent; nodes without a label are wrong."""
    asked = solver(params, TOL)
    view, labels = snapshot.view(asked.k), snapshot.labels
    if asked.how.method == "density_paths":
        paths = density_paths(view, labels, sigma=asked.how.sigma)
        found = paths.labels
        if asked.reach == "l":
            found = torch.where(paths.source == 2, -1, found)
        elif asked.reach == "join":
            found = labels_where_paths_join(view, paths.parent, found)
    else:
        found = Propagator(view, asked.how).solve(labels, CLASSES).labels
    free = labels < 0
    return 100 * float((found == truth)[free].double().mean())


if __name__ == "__main__":
    main()
