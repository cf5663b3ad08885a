"""One round: features of every node -> store -> kNN graph -> pseudo-labels -> published.

Every rank extracts its own nodes and writes them straight to the shards; rank 0 then tells the
store to update the graph and to run the method on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from ..graph_store.store import GraphStore
from ..graph_store.view import Neighborhood
from .batches import BatchSource, neighborhood_to, prefetch
from .engine import Comm
from .method import Method, Network

RoundRecord = dict[str, float | int | bool]


@dataclass(frozen=True)
class Extracted:
    """What a network says about some nodes, on the CPU."""

    node_ids: Int64[Tensor, " b"]
    features: Float[Tensor, "b D"]
    probs: Float[Tensor, "b C"]


def run_round(
    round: int,
    *,
    method: Method,
    network: Network,
    source: BatchSource,
    num_nodes: int,
    chunk: int,
    comm: Comm,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> RoundRecord:
    """Compute and publish round `round`; collective over the ranks.

    Args:
        on_stage: Told what begins: "extract", and on rank 0 "search", "solve" (and publish).
        network: Its features fill the bank; called in the mode it is in (put it in eval mode).
        chunk: Nodes per forward pass. Chunks are cut by node id alone, so that the features do not
            depend on the number of ranks.

    Returns:
        On rank 0 the round's numbers (searched, coverage, seconds per step); empty elsewhere.
    """
    store = source.store
    assert store is not None, "a round needs a store"
    start = time.perf_counter()
    on_stage("extract")
    hops = method.predict_hops if round > 0 else 0
    neighbors = (store, round - 1, hops) if hops else None
    for part in extract(
        network, source, num_nodes=num_nodes, chunk=chunk, comm=comm, neighbors=neighbors
    ):
        store.put(part.node_ids, part.features, part.probs)
    comm.barrier()
    record: RoundRecord = {}
    if comm.rank == 0:
        extracted = time.perf_counter()
        on_stage("search")
        report = store.update_knn()
        on_stage("solve")
        numbers = dict(store.refresh(method.refresh, round=round))
        record = {
            "round": round,
            "searched": report.searched,
            "changed": report.changed,
            "exact": report.exact,
            "recall": report.recall,
            "certified": report.certified,
            "distances": report.distances,
            "rebuilt": report.rebuilt,
            "coverage": numbers.pop("coverage"),
            "mean_weight": numbers.pop("mean_weight"),
            "seconds_extract": extracted - start,
            "seconds_search": report.seconds,
            "seconds_solve": numbers.pop("seconds_solve"),
            "seconds_publish": numbers.pop("seconds_publish"),
            "seconds": time.perf_counter() - start,
            # What the method says of its own solve.
            **numbers,
        }
    comm.barrier()
    return record


@torch.no_grad()
def extract(
    network: Network,
    source: BatchSource,
    *,
    num_nodes: int,
    chunk: int,
    comm: Comm,
    neighbors: tuple[GraphStore, int, int] | None,
) -> Iterator[Extracted]:
    """Features and class probabilities of this rank's chunks of the nodes 0..num_nodes-1.

    Labeled nodes get their one-hot label as probabilities: the label bank of DAG, section 3.
    `neighbors` is (store, round, hops) where the head looks at neighbours.
    """
    starts = range(comm.rank * chunk, num_nodes, comm.world_size * chunk)
    generator = torch.Generator()  # the plain view draws nothing

    def load(start: int) -> tuple[Tensor, Tensor, Tensor, Neighborhood | None]:
        batch = source.reader.read(torch.arange(start, min(start + chunk, num_nodes)))
        neighborhood = None
        if neighbors is not None:
            store, round, hops = neighbors
            neighborhood = store.neighborhood(batch.node_ids, hops=hops, round=round)
        return batch.node_ids, batch.inputs, batch.labels, neighborhood

    for node_ids, inputs, labels, neighborhood in prefetch(load, starts, depth=2):
        features = network.features(source.views["plain"](inputs.to(source.device), generator))
        if neighborhood is not None:
            neighborhood = neighborhood_to(neighborhood, source.device)
        probs = network.head(features, neighborhood).float().softmax(1).cpu()
        labeled = labels >= 0
        probs[labeled] = functional.one_hot(labels[labeled], probs.shape[1]).to(probs.dtype)
        yield Extracted(node_ids, features.float().cpu(), probs)
