"""A run's numbers as Ray metrics, which every node of a cluster offers to Prometheus.

Ray puts `ray_` before the names and, after those of counters, `_total`. Set by the driver; the only
importer of `ray.util.metrics`. The names are frozen: dashboards use them (`cluster/deploy`).

Ray forgets a gauge that was not set for twenty seconds, so that what has ended vanishes; a run's
numbers change far less often, so they are set again all the time while the run goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.metrics import Counter, Gauge

TAGS = ("run", "method")
# By kind of event: key of the event -> name and meaning of the gauge.
GAUGES: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "train": {
        "loss": ("labelmesh_loss", "Training loss, mean since the last record"),
        "step": ("labelmesh_step", "Optimiser steps done"),
        "epoch": ("labelmesh_epoch", "The epoch that is going on, from 0"),
        "samples_per_s": ("labelmesh_samples_per_second", "Training samples per second, all ranks"),
        "lr": ("labelmesh_learning_rate", "Learning rate"),
    },
    "round": {
        "round": ("labelmesh_round", "Number of the last published round"),
        "searched_share": ("labelmesh_searched_share", "Share of the nodes that were searched"),
        "recall": ("labelmesh_recall", "Recall of the graph: 1 where it is exact"),
        "coverage": ("labelmesh_coverage", "Share of unlabeled nodes with a pseudo-label"),
        "pseudo_accuracy": ("labelmesh_pseudo_accuracy", "Share of pseudo-labels that are right"),
    },
    "checkpoint": {
        "seconds": ("labelmesh_checkpoint_seconds", "Time that the last checkpoint took"),
    },
    "attempt": {"workers": ("labelmesh_workers", "Trainers of the run")},
}
STAGE_SECONDS = ("labelmesh_round_seconds", "Time of the last round, by stage")
ACCURACY = ("labelmesh_accuracy", "Accuracy of the averaged network, by split")
WAITING_PUTS = ("labelmesh_waiting_puts", "Writes that no update of the graph has taken yet")
COUNTERS: Mapping[str, tuple[str, str]] = {
    "round": ("labelmesh_rounds", "Rounds published by this driver"),
    "checkpoint": ("labelmesh_checkpoints", "Checkpoints committed under this driver"),
    "restart": ("labelmesh_restarts", "Times the run went on from a checkpoint"),
    "lost": ("labelmesh_losses", "Times processes or machines of the run were lost"),
}
AGAIN_EVERY_S = 5.0
_STAGES = ("extract", "search", "solve", "publish", "train")


class Gauges:
    """Sets the metrics of one run from its events; needs a Ray that is initialised.

    Args:
        num_nodes: What counts of nodes are shares of.
    """

    def __init__(self, run: str, method: str, *, num_nodes: int) -> None:
        self._tags = {"run": run, "method": method}
        self._num_nodes = num_nodes
        self._gauges: dict[str, Gauge] = {}
        self._counters: dict[str, Counter] = {}
        self._last: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def kept(self, every_s: float = AGAIN_EVERY_S) -> Iterator[None]:
        """Within it every value is set again and again, from a thread."""
        is_over = threading.Event()

        def keep() -> None:
            while not is_over.wait(every_s):
                self._set_again()

        thread = threading.Thread(target=keep, name="gauges", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def record(self, event: Mapping[str, Any]) -> None:
        """Take in one of the run's events; those of the baseline are left out."""
        kind = str(event.get("kind"))
        if event.get("baseline"):
            return
        if kind == "round":
            event = {**event, "searched_share": event["searched"] / self._num_nodes}
            for stage in _STAGES:
                self._set(STAGE_SECONDS, event.get(f"seconds_{stage}"), stage=stage)
        for key, about in GAUGES.get(kind, {}).items():
            self._set(about, event.get(key))
        if kind == "eval":
            self._set(ACCURACY, event["accuracy"], split=str(event["split"]))
        elif kind == "queues":
            for shard, count in event["waiting_puts"].items():
                self._set(WAITING_PUTS, count, shard=str(shard))
        elif kind == "attempt" and int(event["number"]) > 1:
            self._count("restart")
        if kind in COUNTERS:
            self._count(kind)

    def _set(self, about: tuple[str, str], value: Any, **tags: str) -> None:
        if not isinstance(value, int | float):
            return
        name, meaning = about
        with self._lock:
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, meaning, tag_keys=(*TAGS, *tags))
            self._gauges[name].set(float(value), {**self._tags, **tags})
            self._last[name, tuple(tags.items())] = float(value)

    def _set_again(self) -> None:
        with self._lock:
            for (name, tags), value in self._last.items():
                self._gauges[name].set(value, {**self._tags, **dict(tags)})

    def _count(self, what: str) -> None:
        name, meaning = COUNTERS[what]
        if name not in self._counters:
            self._counters[name] = Counter(name, meaning, tag_keys=TAGS)
        self._counters[name].inc(1, self._tags)


def node_addresses() -> dict[str, str]:
    """Addresses of the cluster's nodes, by Ray's name of them."""
    return {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}


def metric_names() -> frozenset[str]:
    """All names as Prometheus sees them."""
    gauges = [about for kinds in GAUGES.values() for about in kinds.values()]
    gauges += [STAGE_SECONDS, ACCURACY, WAITING_PUTS]
    counters = [f"ray_{name}_total" for name, _ in COUNTERS.values()]
    return frozenset([*(f"ray_{name}" for name, _ in gauges), *counters])
