"""The kNN graph of an array, in one call and one process."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float32, Float64, Int64
from torch import Tensor

from .affinity import LocalAffinity, power_affinity
from .incremental import LiveGraph
from .index import Backend, make_index
from .kernels.cosine_zeros import add_zero_rows, is_zero
from .kernels.knn import Metric, knn_self_join
from .kernels.rows import prepare_rows, similarity_from_distance
from .local_view import LocalGraphView
from .partition import Partition
from .peers import Peers
from .recall import Recall, measure_recall, measured
from .solvers.arrays import Array, as_tensor, like
from .store import KnnReport
from .view import AffinityKind

METRICS = ("euclidean", "cosine", "inner_product")


class KnnGraph:
    """Every node's k nearest others, nearest first, ties by id.

    Attributes:
        ids: (n, k) int64; array or tensor as the input was.
        distances: (n, k) float32: Euclidean distances, ascending; for "cosine" and "inner_product"
            similarities, descending.
        metric: What "nearest" means.
        num_nodes, k: Shape of the graph.
        recall: None where the graph is exact, else what a sample of its nodes has measured.
    """

    def __init__(
        self,
        neighbor_ids: Int64[Tensor, "n k"],
        canonical: Float64[Tensor, "n k"],
        metric: Metric,
        model: Array,
        source: _Source,
        recall: Recall | None = None,
    ) -> None:
        self.metric = metric
        self._source = source
        self.recall = recall
        self.num_nodes, self.k = neighbor_ids.shape
        self._neighbor_ids, self._canonical = neighbor_ids, canonical
        shown = canonical if metric == "euclidean" else self._similarity
        self.ids: Any = like(neighbor_ids, model)
        self.distances: Any = like(shown.to(torch.float32), model)

    def update(
        self, x_new: Array, *, removed: Array | None = None, eta: float = 0.0
    ) -> tuple[KnnGraph, KnnReport]:
        """The exact graph of moved rows, searching only what the motion could have changed.

        Rows keep their numbers: row i of `x_new` is node i, and further rows are new nodes. This
        graph stays as it is. What makes updates cheap goes over to the new graph; updating an older
        one again builds from nothing (as do graphs of inner products, of other backends than torch
        and of `slack=0`).

        Args:
            x_new: (n', d) numbers, n' >= n.
            removed: Ids of nodes that are taken out, for good: they have no neighbours (-1, and
                inf or 0) and are nobody's. Their rows in `x_new` are not looked at.
            eta: Neighbours may be up to 1 + eta times as far as the true ones of their rank, where
                that saves a search; 0: exact.

        Raises:
            ValueError: Fewer rows than before, another width, unknown ids, or what `knn_graph`
                refuses.
        """
        return self._source.update(self, x_new, removed, eta)

    def as_view(self) -> LocalGraphView:
        """The graph as solvers and methods see it.

        Raises:
            ValueError: An inner-product graph has no distances.
        """
        if self.metric == "inner_product":
            raise ValueError(
                'an "inner_product" graph has no distances; build it with metric="cosine" or '
                '"euclidean"'
            )
        return LocalGraphView(self._neighbor_ids, self._similarity, self._canonical, self.metric)

    def affinity(self, kind: AffinityKind, *, gamma: float = 1.0) -> LocalAffinity:
        """Symmetric weights: "power" (LPDSSL) or "self_tuning" (GLL); see `GraphView.affinity`.

        Raises:
            ValueError: Another kind, gamma <= 0, "self_tuning" of inner products, or "power" of a
                Euclidean graph.
        """
        if self.metric == "inner_product" and kind == "power":
            return power_affinity(self._neighbor_ids, self._similarity, gamma)
        return self.as_view().affinity(kind, gamma=gamma)

    @property
    def _similarity(self) -> Tensor:
        if self.metric == "inner_product":
            return -self._canonical
        return similarity_from_distance(self._canonical)


@dataclass
class _Source:
    """What the graphs of one chain of updates share; only the newest can be updated cheaply."""

    options: _Options
    removed: Bool[Tensor, " n"]
    dim: int
    live: LiveGraph | None

    def update(
        self, graph: KnnGraph, x_new: Array, removed: Array | None, eta: float
    ) -> tuple[KnnGraph, KnnReport]:
        if not eta >= 0:
            raise ValueError(f"eta must be >= 0, got {eta}")
        gone = self._gone(graph, x_new, removed)
        options = self.options
        rows = _checked_rows(x_new, options.k, options.metric, gone)
        # Only now: input that is refused leaves the graph as it was.
        live, self.live = self.live, None
        return _build(x_new, rows, gone, options, live, graph, eta)

    def _gone(self, graph: KnnGraph, x_new: Array, removed: Array | None) -> Bool[Tensor, " m"]:
        shape = tuple(as_tensor(x_new).shape)
        if len(shape) != 2 or shape[0] < graph.num_nodes or shape[1] != self.dim:
            raise ValueError(
                f"x_new must have the graph's {graph.num_nodes} rows (and may have more) of width "
                f"{self.dim}, got shape {shape}; name rows that are gone in removed"
            )
        gone = torch.zeros(shape[0], dtype=torch.bool)
        gone[: graph.num_nodes] = self.removed
        if removed is not None:
            ids = _as_ids(removed)
            unknown = ids[(ids < 0) | (ids >= graph.num_nodes)]
            if len(unknown):
                raise ValueError(
                    f"removed has ids {unknown[:10].tolist()} that are not in "
                    f"0..{graph.num_nodes - 1}"
                )
            gone[ids] = True
        return gone


@dataclass(frozen=True)
class _Options:
    k: int
    metric: Metric
    backend: Backend
    slack: int | None

    @property
    def is_followed(self) -> bool:
        """Whether the graph keeps what an update needs."""
        is_torch = self.backend in ("auto", "torch")
        return is_torch and self.metric != "inner_product" and self.slack != 0


def knn_graph(
    x: Array,
    k: int,
    metric: Metric = "euclidean",
    backend: Backend = "auto",
    *,
    slack: int | None = None,
) -> KnnGraph:
    """Build the exact kNN graph of the rows of `x`.

    Rows are rounded to float32 ("cosine": scaled to length 1 first) and compared by their
    distance in float64, so the graph is the same on any machine, backend and number of threads.
    Rows of zeros have no direction: under "cosine" their similarity to all rows is 0.

    Args:
        x: (n, d) numbers, numpy or torch.
        k: Neighbours of each node without itself, 1 to n - 1.
        metric: "euclidean", "cosine" or "inner_product".
        backend: "torch" or "faiss"; "auto" takes the faster one, "torch". "ivf" is approximate
            (faiss' IVFFlat): the graph's `recall` says what a sample of 1,000 rows has measured.
        slack: Nodes per row that are kept for `KnnGraph.update`, more than k; None: chosen from
            the motion that is seen; 0: nothing is kept, and updates build from nothing.

    Raises:
        ValueError: NaN or infinite rows (which are named), k outside 1..n-1, or an unknown option.

    Example:
        >>> import numpy as np
        >>> g = knn_graph(np.array([[0.0], [1.0], [3.0], [7.0]]), k=2)
        >>> g.ids.tolist()
        [[1, 2], [0, 2], [1, 0], [2, 1]]
        >>> g.distances.tolist()
        [[1.0, 3.0], [1.0, 2.0], [2.0, 3.0], [4.0, 6.0]]
    """
    if slack is not None and slack != 0 and slack <= k:
        raise ValueError(f"slack must be 0 or more than k = {k}, got {slack}")
    options = _Options(k, metric, backend, slack)
    gone = torch.zeros(len(x), dtype=torch.bool)
    rows = _checked_rows(x, k, metric, gone)
    return _build(x, rows, gone, options, None, None, 0.0)[0]


def _build(
    x: Array,
    rows: Float32[Tensor, "n D"],
    gone: Bool[Tensor, " n"],
    options: _Options,
    live: LiveGraph | None,
    before: KnnGraph | None,
    eta: float,
) -> tuple[KnnGraph, KnnReport]:
    """The graph of the rows that are not gone; `live` is that of the graph before."""
    began = time.perf_counter()
    k, metric = options.k, options.metric
    ids = torch.arange(rows.shape[0], device=rows.device)
    gone = gone.to(rows.device)
    kept = ~gone if metric != "cosine" else ~(gone | is_zero(rows))
    report = recall = None
    is_whole = bool(kept.all())
    if options.is_followed:
        live = _live_graph(options, rows.shape[0], live)
        if rows.data_ptr() == as_tensor(x).data_ptr():
            rows = rows.clone()  # what has moved is seen by comparison, and `x` may be written to
        report = live.update(rows, kept, eta=eta)
        found = live.neighbor_ids, live.distances
        found = found if is_whole else (found[0][kept], found[1][kept])
    elif options.backend in ("auto", "torch"):
        found = knn_self_join(rows[kept], k, ids[kept], metric=metric)
    else:
        index = make_index(options.backend, rows[kept], ids[kept], metric)
        found = index.search(rows[kept], k, ids[kept])
        if not index.is_exact:
            recall = measure_recall(rows[kept], *found, metric=metric)
    neighbor_ids, canonical = found
    if not is_whole:
        zeros = ids[~kept & ~gone]
        neighbor_ids, canonical = add_zero_rows(found, kept, ids, zeros, ids[~gone], k)
        neighbor_ids[gone], canonical[gone] = -1, torch.inf
    source = _Source(options, gone.cpu(), rows.shape[1], live if report else None)
    graph = KnnGraph(
        neighbor_ids.to(rows.device), canonical.to(rows.device), metric, x, source, recall
    )
    changed = _num_changed(graph, before)
    if report is None:
        present = int((~gone).sum())
        report = KnnReport(present, changed, True, 1.0, 0.0, rebuilt=True)
    if recall is not None:
        report = measured(report, recall)
    return graph, replace(report, changed=changed, seconds=time.perf_counter() - began)


def _live_graph(options: _Options, num_rows: int, live: LiveGraph | None) -> LiveGraph:
    """The kept lists, with room for new rows."""
    peers = Peers(Partition.even(num_rows, 1))
    if live is None:
        return LiveGraph(peers, options.k, options.slack, keep_scale=options.metric == "cosine")
    live.grow(peers)
    return live


def _num_changed(graph: KnnGraph, before: KnnGraph | None) -> int:
    """Nodes whose neighbours are not those of the graph before; new nodes count."""
    if before is None:
        return graph.num_nodes
    same = graph._neighbor_ids[: before.num_nodes] == before._neighbor_ids
    return graph.num_nodes - int(same.all(1).sum())


def _as_ids(removed: Array) -> Int64[Tensor, " m"]:
    ids = as_tensor(removed)
    if ids.numel() and (ids.ndim != 1 or ids.dtype.is_floating_point or ids.dtype == torch.bool):
        raise ValueError(
            f"removed must be integer ids of shape (m,), got {ids.dtype} of shape "
            f"{tuple(ids.shape)}"
        )
    return ids.reshape(-1).to(torch.int64).cpu()


def _checked_rows(
    x: Array, k: int, metric: Metric, gone: Bool[Tensor, " n"]
) -> Float32[Tensor, "n D"]:
    """Prepared rows; zeros for those that are gone."""
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    features = as_tensor(x).detach()
    if features.ndim != 2 or features.is_complex():
        raise ValueError(
            f"x must be real numbers of shape (n, d), got {features.dtype} of shape "
            f"{tuple(features.shape)}"
        )
    num_rows = features.shape[0] - int(gone.sum())
    if not 1 <= k < num_rows:
        raise ValueError(
            f"k must be between 1 and {num_rows - 1}, because each of the {num_rows} rows is not "
            f"its own neighbour; got {k}"
        )
    if gone.any():
        features = torch.where(gone.to(features.device)[:, None], 0, features)
    if not features.is_floating_point():
        features = features.to(torch.float64)
    rows = prepare_rows(features, metric)
    bad = (~torch.isfinite(rows).all(1)).nonzero()[:, 0]
    if bad.numel():
        raise ValueError(
            f"{bad.numel()} rows contain NaN or infinity in float32: {bad[:10].tolist()}; remove "
            "or repair them"
        )
    return rows
