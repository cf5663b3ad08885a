"""Test accuracy of the methods with equal budget, on a seeded subset of Fashion-MNIST.

    python benchmarks/results.py --data data/fashion-mnist --seeds 0 1 2

Every run sees the same nodes, labels, network, number of steps and batch size. Prints a Markdown
table with mean and standard deviation over the seeds; runs that are finished already are read, not
repeated.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import time
from pathlib import Path
from typing import Any

import labelmesh as lm
from labelmesh.cluster.api import Cluster
from labelmesh.trainers.config import RunSpec, load_config, parse_overrides
from labelmesh.trainers.loop import plan_of
from labelmesh.trainers.method import Phase
from labelmesh.trainers.prepare import make_run_split
from labelmesh.trainers.run_dir import RunDir

METHODS = (
    "supervised",
    "mean-teacher",
    "fixmatch",
    "freematch",
    "lpdssl",
    "laplacenet",
    "cyclecluster",
    "dag",
    "gll",
)
"""First parts of the names of the configurations."""

ABLATIONS = {
    "cyclecluster": (
        "cyclecluster:method.clusters=none",
        "cyclecluster:method.num_clusters=10",
        "cyclecluster",
        "cyclecluster:method.num_clusters=40",
        "cyclecluster:method.num_clusters=80",
        "cyclecluster:method.clusters=matched",
        "cyclecluster:method.rand_augment=true",
        "cyclecluster:method.mean_teacher=10.0",
    ),
    "dag": (
        "dag:method.hops=0",
        "dag",
        "dag:method.hops=2",
        "dag:method.use_density=false",
        "dag:method.paths=l",
        "dag:method.paths=none",
    ),
}
"""Rows by the method that is taken apart; `NAME:KEY=VALUE,...` changes a configuration."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data/fashion-mnist", help="imported data set")
    parser.add_argument("--dataset", default="fashion-mnist", help="suffix of the configurations")
    rows_of = parser.add_mutually_exclusive_group()
    rows_of.add_argument("--methods", nargs="+", default=METHODS, metavar="NAME[:KEY=VALUE,...]")
    rows_of.add_argument("--ablation", choices=ABLATIONS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--num-nodes", type=int, default=10_000, help="0 = all")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", default="runs/results")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    names = ABLATIONS[args.ablation] if args.ablation else args.methods
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with lm.connect() as cluster:
        for seed in args.seeds:
            for name in names:
                rows[name].append(run_one(cluster, name, seed, args))
            print(table(rows), flush=True)


def run_one(cluster: Cluster, row: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """The numbers of one run, trained now or read from its folder."""
    method, _, changes = row.partition(":")
    config = f"{method}-{args.dataset}"
    name = f"{re.sub('[^a-z0-9-]+', '_', row)}-{args.dataset}-{seed}"
    run = RunDir(str(Path(args.out, name).absolute()))
    overrides = {
        "data.uri": args.data,
        "data.split_seed": seed,
        "seed": seed,
        "train.epochs": args.epochs,
        "train.baseline_steps": 0,
        **({"data.num_nodes": args.num_nodes} if args.num_nodes else {}),
        **parse_overrides(args.set),
        **parse_overrides(changes.split(",") if changes else []),
    }
    overrides |= equal_steps(load_config(config, overrides))
    is_new = not run.exists()
    start = time.perf_counter()
    # A finished run is read, after a check that it is of this configuration.
    cluster.train(config, set=overrides, name=name, out=args.out, resume=not is_new)
    if is_new:
        run.write_json("wall.json", {"seconds": time.perf_counter() - start})
    wall = run.read_json("wall.json") if run.exists("wall.json") else {"seconds": float("nan")}
    numbers: dict[str, float] = run.read_json("result.json") | wall
    print(name, json.dumps(numbers), flush=True)
    return numbers


def equal_steps(spec: RunSpec) -> dict[str, Any]:
    """An epoch of several phases gets the steps that one phase over the unlabeled nodes has."""
    phases = len(spec.method.phases_at(0))
    if phases == 1:
        return {}
    labels = make_run_split(spec).labels
    one = plan_of(spec, Phase("one", "mixed"), labels, epoch=0, num_steps=None, groups=None)
    return {"train.steps_per_epoch": one.num_steps // phases}


def table(rows: dict[str, list[dict[str, float]]]) -> str:
    lines = ["| method | test accuracy, % (mean ± sd) | unlabeled nodes right, % | seconds a run |"]
    lines.append("| --- | --- | --- | --- |")
    for method, numbers in rows.items():
        test = [100 * n["test/accuracy"] for n in numbers]
        nodes = statistics.mean(100 * n["nodes/accuracy"] for n in numbers)
        sd = statistics.stdev(test) if len(test) > 1 else float("nan")
        seconds = statistics.median(n["seconds"] for n in numbers)
        lines.append(
            f"| {method} | {statistics.mean(test):.2f} ± {sd:.2f} | {nodes:.2f} | {seconds:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
