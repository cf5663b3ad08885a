"""The kNN graph of one shard's rows: prepared rows, and how the graph is brought up to date.

"exact" follows the rows (`incremental`), "refine" improves the old lists (`refine`), and the faiss
backend searches everything anew.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float32, Float64, Int64
from torch import Tensor

from .exchange import Exchange, OneProcess
from .incremental import LiveGraph
from .kernels.cosine_zeros import add_zero_rows, is_zero
from .kernels.density import density
from .kernels.rows import prepare_rows, similarity_from_distance
from .peers import Peers
from .recall import measure_recall, measured
from .refine import Rule, Start, refine_until
from .sharded_knn import knn_over_shards
from .sharded_refine import ShardExchange
from .store import KnnReport, StoreSpec

# Nodes on which the recall of a refined graph is measured.
RECALL_SAMPLE = 1000


class OldLists(NamedTuple):
    """The neighbours of an earlier update, and which rows were written since."""

    neighbor_ids: Int64[Tensor, "n k"]
    moved: Bool[Tensor, " n"]


Found = tuple[Int64[Tensor, "s k"], Float64[Tensor, "s k"]]


class ShardGraph:
    """Keeps what makes updates cheap. All methods that take `peers` are collective.

    Nothing here must survive: where a shard has lost it, all shards build the graph anew, and an
    exact graph comes out the same.
    """

    def __init__(self, spec: StoreSpec) -> None:
        self._spec = spec
        self._device = torch.device(spec.device)
        self._rows: Float32[Tensor, "n D"] | None = None
        self._live: LiveGraph | None = None

    def write(self, features: Float[Tensor, "n D"], written: Bool[Tensor, " n"]) -> None:
        """Prepare the features of nodes that were written; the graph follows with `update`."""
        if self._rows is None:
            return
        self._rows = self._rows.clone()  # the kept graph compares with the old ones
        at = written.nonzero()[:, 0]
        self._rows[at] = self._prepare(features[at])

    def update(
        self,
        peers: Peers,
        features: Float[Tensor, "n D"],
        present: Bool[Tensor, " n"],
        old: OldLists | None = None,
    ) -> tuple[dict[str, Tensor], KnnReport]:
        """The graph columns of the own rows; absent nodes have no neighbours and are nobody's.

        Args:
            features: As stored; what changed since the last call has gone through `write`.
            old: What refinement starts from; None: nothing.
        """
        if self._rows is None:
            self._rows = self._prepare(features)
        here = present.to(self._device)
        searched = here & self.has_direction(self._rows)
        found, report = self._neighbors(peers, searched, old)
        own = torch.arange(len(present), device=self._device) + peers.start
        zeros = here & ~searched
        if peers.any(not bool(searched.all())):
            zero_ids = self._first_ids(peers, own[zeros])
            all_ids = self._first_ids(peers, own[here])
            found = found[0][searched], found[1][searched]
            found = add_zero_rows(found, searched, own, zero_ids, all_ids, self._spec.k)
            found[0][~here], found[1][~here] = -1, torch.inf
        ids, distances = found[0].cpu(), found[1].cpu()
        similarity = similarity_from_distance(distances).float()
        columns = {
            "neighbor_ids": ids,
            "similarity": similarity,
            "distances": distances.float(),
            "density": density(similarity, ids),
        }
        searched_zeros = peers.total(int(zeros.sum()))
        return columns, replace(report, searched=report.searched + searched_zeros)

    def has_direction(self, rows: Float32[Tensor, "m D"]) -> Bool[Tensor, " m"]:
        """False for rows of zeros under the cosine."""
        if self._spec.metric == "cosine":
            return ~is_zero(rows)
        return torch.ones(len(rows), dtype=torch.bool, device=rows.device)

    def _prepare(self, features: Float[Tensor, "m D"]) -> Float32[Tensor, "m D"]:
        return prepare_rows(features.to(self._device).float(), self._spec.metric)

    def _neighbors(
        self, peers: Peers, searched: Bool[Tensor, " n"], old: OldLists | None
    ) -> tuple[tuple[Tensor, Tensor], KnnReport]:
        """Neighbours of all own rows, -1/inf for those that are not searched."""
        if self._spec.update == "refine":
            return self._refine(peers, searched, old)
        if self._spec.backend in ("auto", "torch"):
            return self._follow(peers, searched)
        return self._search(peers, searched)

    def _follow(
        self, peers: Peers, searched: Bool[Tensor, " n"]
    ) -> tuple[tuple[Tensor, Tensor], KnnReport]:
        assert self._rows is not None
        if self._live is None:
            is_unit = self._spec.metric == "cosine"
            self._live = LiveGraph(peers, self._spec.k, self._spec.slack, keep_scale=is_unit)
        self._live.peers = peers
        report = self._live.update(self._rows, searched, eta=self._spec.tolerance)
        return (self._live.neighbor_ids, self._live.distances), report

    def _search(
        self, peers: Peers, searched: Bool[Tensor, " n"]
    ) -> tuple[tuple[Tensor, Tensor], KnnReport]:
        assert self._rows is not None
        own = torch.arange(len(searched), device=self._device) + peers.start
        found = knn_over_shards(
            self._rows[searched],
            own[searched],
            self._spec.k,
            group=peers.group,
            backend=self._spec.backend,
        )
        ids = torch.full((len(searched), self._spec.k), -1, device=self._device)
        distances = torch.full_like(ids, torch.inf, dtype=torch.float64)
        ids[searched], distances[searched] = (part.to(self._device) for part in found)
        count = peers.total(int(searched.sum()))
        report = KnnReport(count, count, True, 1.0, 0.0, rebuilt=True)
        if self._spec.backend == "ivf":
            recall = measure_recall(
                self._rows,
                ids,
                distances,
                present=searched,
                exchange=_exchange(peers),
                sample_size=RECALL_SAMPLE,
            )
            report = measured(report, recall)
        return (ids, distances), report

    def _refine(
        self, peers: Peers, searched: Bool[Tensor, " n"], old: OldLists | None
    ) -> tuple[tuple[Tensor, Tensor], KnnReport]:
        """Refine the old lists; search everything where that does not reach the target."""
        assert self._rows is not None
        if old is None:
            none = torch.full((len(searched), self._spec.k), -1)
            old = OldLists(none, torch.ones(len(searched), dtype=torch.bool))
        start = Start(self._rows, old.neighbor_ids, old.moved, searched)
        refined = refine_until(
            _exchange(peers), start, self._spec.k, Rule(), self._spec.recall_target, RECALL_SAMPLE
        )
        assert refined.recall is not None
        if refined.needs_rebuild:
            return self._search(peers, searched)
        report = KnnReport(0, 0, False, 0.0, 0.0, distances=refined.num_candidates)
        report = measured(report, refined.recall)
        return (refined.neighbor_ids, refined.distances), report

    def _first_ids(self, peers: Peers, ids: Int64[Tensor, " m"]) -> Int64[Tensor, " f"]:
        """The lowest k + 1 of each shard's ascending ids, in shard order."""
        first = ids[: self._spec.k + 1]
        return peers.concat(first)


def _exchange(peers: Peers) -> Exchange:
    if peers.group is None:
        return OneProcess(peers.partition.num_nodes)
    return ShardExchange(peers.group, peers.partition)
