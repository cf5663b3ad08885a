"""Accuracy of every way of `GraphLabeler` from few labels, beside a linear probe and plain kNN.

    python benchmarks/labeling.py --threads 2
    python benchmarks/labeling.py --images data/fashion-mnist --rows 10000

Per seed the given number of labels of each class is drawn; the numbers are shares of all other rows
whose label is right, in percent: mean over the seeds and standard deviation. digits are
scikit-learn's pixels; `--images` takes an imported data set. The probe (logistic regression on
standardised features) and kNN (5 nearest labeled rows, or as many as a class has labels) are those
that `labelmesh label` prints. "confidence" is the mean over the rows that are counted.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from labelmesh.cluster.compare import knn, linear_probe
from labelmesh.datasets.manifest import splits_of
from labelmesh.datasets.reader import Reader
from labelmesh.datasets.truth import load_truth
from labelmesh.graph_store.knn_graph import knn_graph
from labelmesh.graph_store.labeling import METHODS, Propagation, Propagator
from sklearn.datasets import load_digits

Label = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="folder of an imported data set")
    parser.add_argument("--rows", type=int, default=10_000, help="of the data set")
    parser.add_argument("-k", type=int, default=20)
    parser.add_argument("--labels-per-class", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--methods", nargs="+", default=[*METHODS, "linear_probe", "knn"])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    x, truth = load_images(args.images, args.rows) if args.images else load_pixels()
    name = args.images.name if args.images else "digits"
    print(f"{name}, {len(x)} rows x {x.shape[1]}, k = {args.k}, {args.seeds} seeds")
    print(f"{'method':18} {'labels per class':>16} {'right, %':>14} {'confidence':>10}")
    view = knn_graph(x, args.k, slack=0).as_view()
    num_classes = int(truth.max()) + 1
    for method in args.methods:
        if method in METHODS:
            label = by_graph(Propagator(view, Propagation(method)), num_classes)
        else:
            label = by_rows(x, method)
        for count in args.labels_per_class:
            scores = [score(label, truth, count, seed) for seed in range(args.seeds)]
            right, confidence = zip(*scores)
            shown = f"{100 * statistics.mean(right):.2f} ± {100 * statistics.pstdev(right):.2f}"
            mean = statistics.mean(confidence)
            print(f"{method:18} {count:16} {shown:>14} {mean:10.3f}", flush=True)


def load_pixels() -> tuple[np.ndarray, np.ndarray]:
    x, truth = load_digits(return_X_y=True)
    return x.astype(np.float32), truth


def load_images(folder: Path, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in 0..1 and classes of the first samples that are for training."""
    uri = str(folder)
    taken = splits_of(uri)["train"][:rows]
    batch = Reader(uri, taken, torch.full_like(taken, -1)).read(torch.arange(len(taken)))
    pixels = batch.inputs.flatten(1).float() / 255
    return pixels.numpy(), load_truth(uri, taken).numpy()


def by_graph(propagator: Propagator, num_classes: int) -> Label:
    def label(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        solved = propagator.solve(torch.from_numpy(labels), num_classes)
        return solved.labels.numpy(), solved.confidence.numpy()

    return label


def by_rows(x: np.ndarray, method: str) -> Label:
    def label(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        given = labels >= 0
        neighbors = min(5, int(np.bincount(labels[given]).min()))
        if method == "knn":
            found = knn(x[given], labels[given], x, neighbors, "euclidean")
        else:
            found = linear_probe(x[given], labels[given], x)
        return found, np.full(len(x), np.nan)

    return label


def score(label: Label, truth: np.ndarray, count: int, seed: int) -> tuple[float, float]:
    """Share of right labels and mean confidence of the rows whose label is not given."""
    rng = np.random.default_rng(seed)
    labels = np.full(len(truth), -1)
    for number in range(int(truth.max()) + 1):
        given = rng.choice(np.flatnonzero(truth == number), count, replace=False)
        labels[given] = number
    asked = labels < 0
    found, confidence = label(labels)
    return float((found == truth)[asked].mean()), float(confidence[asked].mean())


if __name__ == "__main__":
    main()
