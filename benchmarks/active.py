"""Accuracy by number of labels when each criterion chooses what to label next.

    python benchmarks/active.py --threads 2
    python benchmarks/active.py --images data/fashion-mnist --rows 10000

Starts from one label per class, drawn at random; in each of `--rounds` rounds the criterion chooses
`--count` nodes, whose true labels are then given. "random" draws them. The numbers are accuracies
on the nodes that have no label yet, in percent: means over the seeds, and in brackets the standard
error of the last one. digits are scikit-learn's pixels; `--images` takes an imported data set.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from labelmesh.datasets.manifest import splits_of
from labelmesh.datasets.reader import Reader
from labelmesh.datasets.splits import class_balanced
from labelmesh.datasets.truth import load_truth
from labelmesh.graph_store.knn_graph import knn_graph
from labelmesh.graph_store.labeling import Propagation, Propagator
from labelmesh.graph_store.suggest import CRITERIA, Wanted, suggest_nodes
from labelmesh.graph_store.view import GraphView
from sklearn.datasets import load_digits
from torch import Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of an imported data set")
    parser.add_argument("--rows", type=int, default=10_000, help="of the data set")
    parser.add_argument("-k", type=int, default=20)
    parser.add_argument("--methods", nargs="+", default=["poisson", "laplace"])
    parser.add_argument("--criteria", nargs="+", default=["random", *CRITERIA])
    parser.add_argument("--measure", default=Wanted.measure)
    parser.add_argument("--rank", type=int, default=Wanted.rank)
    parser.add_argument("--balance", action="store_true")
    parser.add_argument("--count", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    features, truth = load_images(args.images, args.rows) if args.images else load_pixels()
    name = args.images.name if args.images else "digits"
    view = knn_graph(features, args.k).as_view()
    print(f"{name}, {len(truth)} rows, k = {args.k}, {args.measure}, {args.seeds} seeds")
    num_labels = [10 + round * args.count for round in range(args.rounds + 1)]
    print(" ".join([f"{'method':9} {'criterion':13}", *(f"{n:6}" for n in num_labels)]))
    for method in args.methods:
        propagator = Propagator(view, Propagation(method))
        for criterion in args.criteria:
            began = time.perf_counter()
            runs = [
                learn(view, propagator, truth, criterion, seed, args) for seed in range(args.seeds)
            ]
            print(line(method, criterion, runs, time.perf_counter() - began), flush=True)


def load_pixels() -> tuple[Tensor, Tensor]:
    data = load_digits()
    return torch.from_numpy(data.data), torch.from_numpy(data.target)


def load_images(folder: Path, rows: int) -> tuple[Tensor, Tensor]:
    """Pixels in 0..1 and classes of the first samples that are for training."""
    uri = str(folder)
    taken = splits_of(uri)["train"][:rows]
    batch = Reader(uri, taken, torch.full_like(taken, -1)).read(torch.arange(len(taken)))
    return batch.inputs.flatten(1).float() / 255, load_truth(uri, taken)


def learn(
    view: GraphView,
    propagator: Propagator,
    truth: Tensor,
    criterion: str,
    seed: int,
    args: argparse.Namespace,
) -> list[float]:
    """Accuracies before the first round and after each."""
    num_classes = int(truth.max()) + 1
    labels = torch.full_like(truth, -1)
    start = class_balanced(truth, 1, seed)
    labels[start] = truth[start]
    generator = torch.Generator().manual_seed(seed)
    accuracies = []
    for round in range(args.rounds + 1):
        found = propagator.solve(labels, num_classes)
        among = labels < 0
        accuracies.append(float((found.labels == truth)[among].double().mean()))
        if round == args.rounds:
            return accuracies
        if criterion == "random":
            rows = among.nonzero()[:, 0]
            chosen = rows[torch.randperm(len(rows), generator=generator)[: args.count]]
        else:
            wanted = Wanted(criterion, args.measure, args.balance, args.rank, seed)
            choice = suggest_nodes(view, found.probs, among=among, count=args.count, wanted=wanted)
            chosen = (choice.place >= 0).nonzero()[:, 0]
        labels[chosen] = truth[chosen]
    raise AssertionError


def line(method: str, criterion: str, runs: Sequence[Sequence[float]], seconds: float) -> str:
    means = [100 * statistics.fmean(column) for column in zip(*runs)]
    last = [100 * run[-1] for run in runs]
    error = statistics.stdev(last) / len(last) ** 0.5 if len(last) > 1 else 0.0
    numbers = " ".join(f"{mean:6.2f}" for mean in means)
    return f"{method:9} {criterion:13} {numbers} ({error:.2f})  {seconds:.1f} s"


if __name__ == "__main__":
    main()
