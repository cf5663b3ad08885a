"""What happens to a kNN graph between consecutive records of features, in numbers.

Per pair of records (rows scaled to length 1, k neighbours; r_k: median old distance of the k-th;
a/b/c/d: the 10, 50, 90 and 99 % quantiles over rows):

- drift: how far each row moved, in r_k, as it is and after the best common rotation and shift;
- edges' lengths: change of the distance to a neighbour, mean over k, in r_k;
- edges, lists: share of the edges to k neighbours, and of the nodes, that changed (any order);
- slack K: distance from the k-th to the (K+1)-th neighbour, in r_k, median over nodes: what a
  certificate may lose before it fails;
- held K: share of the true new neighbours that are among the K old ones;
- scanned K: share of the rows that must be searched again although K neighbours are kept, with the
  best threshold; "+10 %" when lists may be wrong by that factor in distance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from labelmesh.graph_store.kernels.knn import knn_self_join, normalize_rows
from labelmesh.graph_store.thresholds import best_threshold, num_scanned
from torch import Tensor

SIZES = (32, 64)
QUANTILES = (0.1, 0.5, 0.9, 0.99)
HEADER = (
    "| records | steps | lr | r_k | dim | drift | common motion removed "
    "| edges' lengths | edges | lists | slack 32, 64 | held 32, 64 | scanned 32, 64 | 64, +10 % |"
)


@dataclass(frozen=True)
class Record:
    """One file of features, and the K + 1 nearest of every row."""

    name: str
    step: int
    lr: float
    rows: Tensor
    ids: Tensor
    distances: Tensor


def table(folder: Path, k: int) -> str:
    """A Markdown table of the folder's consecutive records."""
    files = sorted(folder.glob("round-*.npz"))
    lines = [HEADER, "|" + " --- |" * HEADER[1:].count("|")]
    old: Record | None = None
    for file in files:
        new = load_record(file, max(SIZES) + 1)
        if old is not None:
            lines.append(line(old, new, k))
        old = new
    return "\n".join(lines)


def load_record(file: Path, count: int) -> Record:
    with np.load(file) as arrays:
        rows = normalize_rows(torch.from_numpy(arrays["features"]))
        step, lr = int(arrays["step"]), float(arrays["lr"])
    ids, distances = knn_self_join(rows, count)
    return Record(file.stem.removeprefix("round-"), step, lr, rows, ids, distances)


def line(old: Record, new: Record, k: int) -> str:
    """The table's line of one pair."""
    unit = float(old.distances[:, k - 1].median())
    drift = (new.rows - old.rows).norm(dim=1)
    residual = residual_drift(old.rows, new.rows)
    nearest = old.ids[:, :k]
    change = (lengths(new.rows, nearest) - old.distances[:, :k]).abs().mean(1)
    same = member(new.ids[:, :k], nearest)
    cells = [
        f"{int(old.name)} to {int(new.name)}",
        str(new.step - old.step),
        f"{old.lr:.4f}",
        f"{unit:.3f}",
        f"{intrinsic_dimension(old.distances[:, :k]):.1f}",
        numbers(quantiles(drift / unit), "{:.3g}", "/"),
        numbers(quantiles(residual / unit), "{:.3g}", "/"),
        numbers(quantiles(change / unit), "{:.2g}", "/"),
        f"{1 - share(same):.1%}",
        f"{1 - share(same.all(1)):.1%}",
        numbers(
            [
                float((old.distances[:, size] - old.distances[:, k - 1]).median()) / unit
                for size in SIZES
            ]
        ),
        numbers([share(member(new.ids[:, :k], old.ids[:, :size])) for size in SIZES], "{:.1%}"),
        numbers([scanned(old, new, residual, k, size) for size in SIZES], "{:.1%}"),
        f"{scanned(old, new, residual, k, 64, eta=0.1):.1%}",
    ]
    return "| " + " | ".join(cells) + " |"


def residual_drift(old: Tensor, new: Tensor) -> Tensor:
    """Length of what is left of each row's motion after the best rotation and shift.

    Orthogonal Procrustes: both centred, U S V^T = svd(old^T new), rotation U V^T.
    """
    a, b = old.double(), new.double()
    a, b = a - a.mean(0), b - b.mean(0)
    u, _, vh = torch.linalg.svd(a.T @ b)
    left: Tensor = (b - a @ (u @ vh)).norm(dim=1)
    return left


def intrinsic_dimension(distances: Tensor) -> float:
    """Levina and Bickel (NIPS 2004), inverses averaged over rows as MacKay and Ghahramani do."""
    distances = distances[distances[:, 0] > 0]
    logs = (distances[:, -1:] / distances[:, :-1]).log()
    return 1 / float(logs.mean())


def scanned(old: Record, new: Record, drift: Tensor, k: int, size: int, eta: float = 0.0) -> float:
    """Share of rows that no threshold on the drift can spare a search.

    Row i is spared by a threshold t when drift_i <= t < h_i - drift_i - a_i / (1 + eta), with h_i
    its old distance of rank size + 1 and a_i the k-th of the new distances to its old neighbours.
    The best t lies in the most of these intervals.
    """
    refreshed = lengths(new.rows, old.ids[:, :size])
    wanted = refreshed.kthvalue(k, dim=1).values / (1 + eta)
    limit = old.distances[:, size] - drift - wanted
    return num_scanned(drift, limit, best_threshold(drift, limit)) / len(drift)


def lengths(rows: Tensor, ids: Tensor) -> Tensor:
    """Distance of each row to the rows of its list."""
    parts = torch.arange(len(ids)).tensor_split(max(1, len(ids) // 1000))
    return torch.cat([(rows[p][:, None] - rows[ids[p]]).norm(dim=2) for p in parts]).double()


def member(ids: Tensor, lists: Tensor) -> Tensor:
    """Whether each id is in the list of its row."""
    return torch.stack([(ids[:, j : j + 1] == lists).any(1) for j in range(ids.shape[1])], 1)


def share(flags: Tensor) -> float:
    return float(flags.double().mean())


def quantiles(values: Tensor) -> list[float]:
    return values.double().quantile(torch.tensor(QUANTILES, dtype=torch.float64)).tolist()


def numbers(values: Sequence[float], form: str = "{:.2f}", separator: str = ", ") -> str:
    return separator.join(form.format(value) for value in values)
