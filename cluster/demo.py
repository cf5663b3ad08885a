"""`make demo`: scikit-learn's digits, 4 labels per class, DAG on 2 shards and 2 workers.

Beside DAG's test accuracy it prints what the labels give without it: a supervised network, and
label propagation on raw pixels.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from ..datasets.reader import Reader
from ..datasets.splits import Split
from ..datasets.truth import load_truth
from ..graph_store import solvers
from ..graph_store.knn_graph import knn_graph
from ..trainers.config import RunSpec, load_config
from ..trainers.prepare import import_builtin, make_run_split
from .api import connect
from .progress import Progress


def main(seed: int = 0) -> None:
    """Run the demo and print its table."""
    start = time.perf_counter()
    spec = load_config("dag-digits", {"seed": seed, "data.split_seed": seed})
    name = _free_name(spec.output.uri, f"demo-seed{seed}")
    with connect() as cluster, Progress(name) as progress:
        run = cluster.train(spec, name=name, on_event=progress.update)
    pixels = propagation_on_pixels(spec)
    rows = [
        ("supervised, labeled samples only", run.metrics["baseline/test/accuracy"]),
        ("label propagation on raw pixels", pixels),
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


def propagation_on_pixels(spec: RunSpec) -> float:
    """Test accuracy of local-global consistency on pixels, the test images being nodes too.

    Zhou et al., NIPS 2003, with LPDSSL's weights (Iscen et al., CVPR 2019): what the given labels
    are worth when no network is trained.
    """
    import_builtin(spec)
    split = make_run_split(spec)
    pixels = _inputs(spec.data.uri, split)
    labels = torch.cat([split.labels, torch.full((len(split.test_rows),), -1)])
    graph = knn_graph(pixels, k=spec.graph.k, metric="cosine")
    scores = solvers.local_global(graph.affinity("power", gamma=3.0), labels, alpha=0.99)
    predicted = scores[len(split.rows) :].argmax(1)
    truth = load_truth(spec.data.uri, split.test_rows)
    return float((predicted == truth).float().mean())


def _inputs(uri: str, split: Split) -> torch.Tensor:
    rows = torch.cat([split.rows, split.test_rows])
    reader = Reader(uri, rows, torch.full((len(rows),), -1))
    return reader.read(torch.arange(len(rows))).inputs.flatten(1).float()


def _free_name(folder: str, wanted: str) -> str:
    """`wanted`, or the first of wanted-2, wanted-3 ... that is no run yet."""
    taken = {p.name for p in Path(folder).glob(f"{wanted}*")}
    names = [wanted, *(f"{wanted}-{i}" for i in range(2, len(taken) + 3))]
    return next(n for n in names if n not in taken)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
