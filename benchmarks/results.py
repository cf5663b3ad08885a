"""Test accuracy of the methods with equal budget, on a seeded subset of Fashion-MNIST.

    python benchmarks/results.py --data data/fashion-mnist --seeds 0 1 2

Every run sees the same nodes, labels, network, number of steps and batch size. Prints a Markdown
table with mean and standard deviation over the seeds; runs that are finished already are read, not
repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import labelmesh as lm
from labelmesh.cluster.api import Cluster
from labelmesh.trainers.run_dir import RunDir

METHODS = ("supervised", "fixmatch", "lpdssl", "dag", "gll")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="data/fashion-mnist", help="imported data set")
    parser.add_argument("--dataset", default="fashion-mnist", help="suffix of the configurations")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--num-nodes", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", default="runs/results")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    rows: dict[str, list[dict[str, float]]] = {method: [] for method in args.methods}
    with lm.connect() as cluster:
        for seed in args.seeds:
            for method in args.methods:
                rows[method].append(run_one(cluster, method, seed, args))
            print(table(rows), flush=True)


def run_one(cluster: Cluster, method: str, seed: int, args: argparse.Namespace) -> dict[str, float]:
    """The numbers of one run, trained now or read from its folder."""
    from labelmesh.trainers.config import parse_overrides

    name = f"{method}-{args.dataset}-{seed}"
    run = RunDir(str(Path(args.out, name).absolute()))
    overrides = {
        "data.uri": args.data,
        "data.num_nodes": args.num_nodes,
        "data.split_seed": seed,
        "seed": seed,
        "train.epochs": args.epochs,
        "train.baseline_steps": 0,
        **parse_overrides(args.set),
    }
    is_new = not run.exists()
    start = time.perf_counter()
    # A finished run is read, after a check that it is of this configuration.
    cluster.train(
        f"{method}-{args.dataset}", set=overrides, name=name, out=args.out, resume=not is_new
    )
    if is_new:
        run.write_json("wall.json", {"seconds": time.perf_counter() - start})
    wall = run.read_json("wall.json") if run.exists("wall.json") else {"seconds": float("nan")}
    numbers: dict[str, float] = run.read_json("result.json") | wall
    print(name, json.dumps(numbers), flush=True)
    return numbers


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
