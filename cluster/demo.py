"""`make demo`: scikit-learn's digits, 4 labels per class, DAG on 2 shards and 2 workers.

Beside DAG's test accuracy it prints what the labels give without it: a supervised network, and on
raw pixels a linear probe, nearest neighbours and label propagation.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from rich.console import Console
from rich.table import Table
from torch import Tensor

from ..datasets.reader import Reader
from ..datasets.truth import load_truth
from ..graph_store import solvers
from ..graph_store.knn_graph import knn_graph
from ..trainers.config import RunSpec, load_config
from ..trainers.prepare import import_builtin, make_run_split
from .api import connect
from .compare import knn, linear_probe
from .progress import Progress


def main(seed: int = 0) -> None:
    """Run the demo and print its table."""
    start = time.perf_counter()
    spec = load_config("dag-digits", {"seed": seed, "data.split_seed": seed})
    name = _free_name(spec.output.uri, f"demo-seed{seed}")
    with connect() as cluster, Progress(name) as progress:
        run = cluster.train(spec, name=name, on_event=progress.update)
    pixels = read_pixels(spec)
    probed, nearest = baseline_labels(pixels)
    rows = [
        ("supervised, labeled samples only", run.metrics["baseline/test/accuracy"]),
        ("linear probe on raw pixels", pixels.accuracy(probed)),
        ("nearest labeled neighbor on raw pixels", pixels.accuracy(nearest)),
        ("label propagation on raw pixels", pixels.accuracy(propagated_labels(pixels, spec))),
        ("DAG", run.metrics["test/accuracy"]),
    ]
    labeled = int(run.metrics["num_labeled"])
    table = Table(title=f"digits: {labeled} labeled of {int(run.metrics['num_nodes'])} images")
    table.add_column("method")
    table.add_column("test accuracy", justify="right")
    for method, accuracy in rows:
        table.add_row(method, f"{accuracy:.1%}")
    console = Console()
    console.print(table)
    console.print(
        f"{time.perf_counter() - start:.0f} s; report: {run.path / 'report.html'}", soft_wrap=True
    )


@dataclass(frozen=True)
class Pixels:
    """Raw pixels of all nodes, then of the test images; the labels of both, -1 = not given."""

    values: Float[Tensor, "n D"]
    labels: Int64[Tensor, " n"]
    truth: Int64[Tensor, " t"]

    def accuracy(self, predicted: Int64[Tensor, " t"]) -> float:
        """Of labels for the test images."""
        return float((predicted == self.truth).float().mean())


def read_pixels(spec: RunSpec) -> Pixels:
    """What the demo's rows without a network start from."""
    import_builtin(spec)
    split = make_run_split(spec)
    rows = torch.cat([split.rows, split.test_rows])
    labels = torch.cat([split.labels, torch.full((len(split.test_rows),), -1)])
    reader = Reader(spec.data.uri, rows, torch.full((len(rows),), -1))
    values = reader.read(torch.arange(len(rows))).inputs.flatten(1).float()
    return Pixels(values, labels, load_truth(spec.data.uri, split.test_rows))


def propagated_labels(pixels: Pixels, spec: RunSpec) -> Int64[Tensor, " t"]:
    """Labels of the test images by local-global consistency, all images being nodes.

    Zhou et al., NIPS 2003, with LPDSSL's weights (Iscen et al., CVPR 2019): what the given labels
    are worth when no network is trained.
    """
    graph = knn_graph(pixels.values, k=spec.graph.k, metric="cosine")
    scores = solvers.local_global(graph.affinity("power", gamma=3.0), pixels.labels, alpha=0.99)
    found: Tensor = scores[-len(pixels.truth) :].argmax(1)
    return found


def baseline_labels(pixels: Pixels) -> tuple[Int64[Tensor, " t"], Int64[Tensor, " t"]]:
    """Labels of the test images by logistic regression on the labeled ones, and by the nearest."""
    given = pixels.labels >= 0
    x, y = pixels.values[given].numpy(), pixels.labels[given].numpy()
    test = pixels.values[-len(pixels.truth) :].numpy()
    probed, nearest = linear_probe(x, y, test), knn(x, y, test, 1, "cosine")
    return torch.from_numpy(probed), torch.from_numpy(nearest)


def _free_name(folder: str, wanted: str) -> str:
    """`wanted`, or the first of wanted-2, wanted-3 ... that is no run yet."""
    taken = {p.name for p in Path(folder).glob(f"{wanted}*")}
    names = [wanted, *(f"{wanted}-{i}" for i in range(2, len(taken) + 3))]
    return next(n for n in names if n not in taken)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
