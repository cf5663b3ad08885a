"""From a plan of node ids to the micro-batches that a rank trains on.

Reading samples and asking the store for neighbours happens on one background thread, a few
micro-batches ahead of the training step.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor

from ..datasets.base_set import BaseSet
from ..datasets.sampler import Plan
from ..datasets.schema import NodeBatch
from ..graph_store.store import GraphStore
from ..graph_store.view import Hop, Neighborhood, PseudoLabels
from .method import BaseRows, Batch, Phase, ViewName
from .seeds import derive_seed

T = TypeVar("T")
U = TypeVar("U")
View = Callable[[Tensor, torch.Generator], Tensor]
Views = dict[ViewName, View]


@runtime_checkable
class NodeReader(Protocol):
    """Has the inputs of a run's nodes: a `Reader` of samples, or what stands for one.

    Attributes:
        groups: Number of the shard of files that each node's sample lies in.
    """

    groups: Tensor

    def read(self, node_ids: Tensor) -> NodeBatch:
        """Inputs and given labels of some nodes, in this order; unreadable ones are left out."""
        ...


@dataclass(frozen=True)
class BatchSource:
    """All that a micro-batch is made from. `store` is None for methods without a graph."""

    reader: NodeReader
    views: Views
    store: GraphStore | None
    device: torch.device
    seed: int

    def micro_batches(
        self,
        plan: Plan,
        phase: Phase,
        *,
        epoch: int,
        round: int | None,
        mine: range,
        base: BaseSet | None = None,
        start_step: int = 0,
    ) -> Iterator[tuple[int, int, Batch]]:
        """(step, micro-batch index, batch) of this rank, in order.

        Args:
            round: The round to read pseudo-labels and neighbours from; None = none published.
            mine: Indices of this rank's micro-batches within every step.
            base: The labeled nodes beside each micro-batch; None where the phase asks for none.
            start_step: Where a run goes on.
        """
        items = ((step, index) for step in range(start_step, plan.num_steps) for index in mine)

        def load(item: tuple[int, int]) -> tuple[int, int, _Loaded]:
            nodes = self.reader.read(plan.micro_batch(*item))
            beside = None if base is None else self.reader.read(base.take(*item))
            pseudo, neighborhood = None, None
            if self.store is not None and round is not None:
                pseudo = self.store.pseudo_labels(nodes.node_ids, round=round)
                if phase.hops:
                    neighborhood = self.store.neighborhood(
                        nodes.node_ids, hops=phase.hops, round=round
                    )
            return *item, _Loaded(nodes, beside, pseudo, neighborhood)

        for step, index, loaded in prefetch(load, items, depth=3):
            seed = derive_seed(self.seed, "batch", phase.name, epoch, step, index)
            yield step, index, self._batch(loaded, phase, seed)

    def _batch(self, loaded: _Loaded, phase: Phase, seed: int) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        nodes, base = loaded.nodes, loaded.base

        # Dropout draws from the global generator; this makes it a function of the micro-batch too.
        torch.manual_seed(derive_seed(seed, "dropout"))
        return Batch(
            phase=phase.name,
            node_ids=nodes.node_ids.to(self.device),
            labels=nodes.labels.to(self.device),
            pseudo=None if loaded.pseudo is None else pseudo_to(loaded.pseudo, self.device),
            neighborhood=None
            if loaded.neighborhood is None
            else neighborhood_to(loaded.neighborhood, self.device),
            view=self._view(nodes, generator),
            generator=generator,
            base=None
            if base is None
            else BaseRows(
                base.node_ids.to(self.device),
                base.labels.to(self.device),
                self._view(base, generator),
            ),
        )

    def _view(self, nodes: NodeBatch, generator: torch.Generator) -> Callable[..., Tensor]:
        def view(name: ViewName, rows: Tensor | None = None) -> Tensor:
            inputs = nodes.inputs if rows is None else nodes.inputs[rows.cpu()]
            return self.views[name](inputs.to(self.device), generator)

        return view


@dataclass(frozen=True)
class _Loaded:
    """What the background thread has read for one micro-batch."""

    nodes: NodeBatch
    base: NodeBatch | None
    pseudo: PseudoLabels | None
    neighborhood: Neighborhood | None


def pseudo_to(pseudo: PseudoLabels, device: torch.device) -> PseudoLabels:
    extra = {name: column.to(device) for name, column in pseudo.extra.items()}
    return PseudoLabels(pseudo.probs.to(device), pseudo.weight.to(device), extra)


def neighborhood_to(neighborhood: Neighborhood, device: torch.device) -> Neighborhood:
    def move(hop: Hop) -> Hop:
        return replace(
            hop,
            index=hop.index.to(device),
            node_ids=hop.node_ids.to(device),
            features=hop.features.to(device),
            density=hop.density.to(device),
        )

    return Neighborhood(tuple(move(hop) for hop in neighborhood.hops))


def prefetch(load: Callable[[T], U], items: Iterable[T], *, depth: int) -> Iterator[U]:
    """`map(load, items)`, computed on one thread up to `depth` results ahead.

    An exception in `load` is raised where its result would have come. Leaving the loop early stops
    the thread.
    """
    results: queue.Queue[tuple[U | None, BaseException | None]] = queue.Queue(maxsize=depth)
    stop = threading.Event()
    done = object()

    def offer(result: tuple[U | None, BaseException | None] | object) -> bool:
        while not stop.is_set():
            try:
                results.put(result, timeout=0.1)  # type: ignore[arg-type]
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer((load(item), None)):
                    return
            offer(done)
        except BaseException as error:
            offer((None, error))

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            result = results.get()
            if result is done:
                return
            value, error = result
            if error is not None:
                raise error
            yield value  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
