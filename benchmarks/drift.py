"""How far features move between two refresh rounds of a real training run.

    python benchmarks/drift.py --data data/fashion-mnist --out runs/drift/dag
    python benchmarks/drift.py --out runs/drift/dag

Trains a shipped configuration in this process and records the features of every node, before they
are scaled to unit length, as `round-0000.npz`, ... (float32 `features`, true `labels`, `step`,
`epoch`, `lr`):

- in the folder itself: of the averaged network at every round, what the store is given;
- in `raw/`: of the trained network at the same moments;
- in `steps-A/` and `raw-steps-A/`: of both, 0, 1, 6, 26 and 76 steps after step A of the phases.

Then (without `--data`: from what is recorded) it prints a table per folder. A line is two
consecutive records; r_k is the median distance of the k-th neighbour, all rows scaled to length 1.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from drift_table import table
from labelmesh.datasets.manifest import load_info, load_labels
from labelmesh.datasets.reader import Reader
from labelmesh.graph_store.local_store import LocalStore
from labelmesh.graph_store.store import StoreSpec
from labelmesh.trainers.config import RunSpec, load_config, parse_overrides
from labelmesh.trainers.ema import Ema
from labelmesh.trainers.engine import LocalEngine
from labelmesh.trainers.launch import local_device
from labelmesh.trainers.loop import plan_of
from labelmesh.trainers.method import Network
from labelmesh.trainers.networks import make_views
from labelmesh.trainers.prepare import prepare
from labelmesh.trainers.run_dir import RunDir
from labelmesh.trainers.schedule import learning_rate
from labelmesh.trainers.worker import Job, run_job
from torch import Tensor

STEPS_AFTER = (0, 1, 6, 26, 76)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="imported data set; without it only the table is printed")
    parser.add_argument("--out", required=True, help="folder of the records")
    parser.add_argument("--config", default="dag-fashion-mnist")
    parser.add_argument("--num-nodes", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--stages", type=float, nargs="*", default=[0.05, 0.5, 0.93])
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("-k", type=int, default=15)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.data is not None:
        record(args)
    folders = {path.parent for path in Path(args.out).rglob("round-*.npz")}
    for folder in sorted(folders):
        print(f"\n{folder}\n\n{table(folder, args.k)}", flush=True)


def record(args: argparse.Namespace) -> None:
    """Train, and write the records on the way."""
    overrides = {
        "data.uri": args.data,
        "data.num_nodes": args.num_nodes,
        "train.engine": "local",
        "train.num_workers": 1,
        "train.threads_per_worker": args.threads,
        "train.epochs": args.epochs,
        "train.baseline_steps": 0,
        "graph.num_shards": 1,
    }
    spec = load_config(args.config, overrides | parse_overrides(args.set))
    run = RunDir(str(Path(args.out, "run").absolute()))
    split = prepare(spec, run, resume=False).split
    split.save(run.child("split.parquet"))
    store = _store(spec, split.labels) if spec.method.uses_graph else None
    recorder = _Recorder(spec, split.rows, split.labels, Path(args.out), args.stages)

    def make_engine(network: Network, train: Any, device: torch.device) -> LocalEngine:
        return _RecordingEngine(network, train, device, recorder)

    run.write_text("config.toml", spec.to_toml())
    job = Job(spec, run, run.child("split.parquet"), store, None)
    run_job(job, make_engine, local_device(), _show)


def _store(spec: RunSpec, labels: Tensor) -> LocalStore:
    num_classes = load_info(spec.data.uri).num_classes
    graph = spec.graph
    store = LocalStore(
        StoreSpec(len(labels), spec.model.feature_dim, num_classes, graph.k, graph.metric)
    )
    store.put_labels(torch.arange(len(labels)), labels)
    return store


def _show(event: dict[str, Any]) -> None:
    if event["kind"] == "round":
        print(f"round {event['round']}: pseudo-labels {event['pseudo_accuracy']}", flush=True)


class _Recorder:
    """Writes the features of all nodes at the steps where a record is due."""

    def __init__(
        self, spec: RunSpec, rows: Tensor, labels: Tensor, out: Path, stages: list[float]
    ) -> None:
        self._spec, self._out = spec, out
        self._labels = load_labels(spec.data.uri)[rows].numpy()
        nodes = Reader(spec.data.uri, rows, labels).read(torch.arange(len(rows)))
        self._inputs, self._view = nodes.inputs, make_views(spec.data, nodes.inputs.shape[1:])
        self._first = spec.train.warmup_steps
        lengths = [
            plan_of(
                spec, p, labels, epoch=0, num_steps=spec.train.steps_per_epoch, groups=None
            ).num_steps
            for p in spec.method.phases
        ]
        self._epoch_steps = sum(lengths)
        self._due: dict[int, list[tuple[str, int]]] = {}
        for number in range(spec.train.epochs + 1):
            self._expect(number * self._epoch_steps, "", number)
        for stage in stages:
            base = int(stage * spec.train.epochs * self._epoch_steps)
            for number, after in enumerate(STEPS_AFTER):
                self._expect(base + after, f"steps-{base}", number)

    def _expect(self, step: int, series: str, number: int) -> None:
        self._due.setdefault(step, []).append((series, number))

    def __call__(self, step: int, averaged: Network, trained: Network) -> None:
        due = self._due.get(step - self._first, ())
        if not due:
            return
        epoch = (step - self._first) / self._epoch_steps
        lr = learning_rate(self._spec.train, epoch=epoch, step=step)
        banks = {"": self._features(averaged), "raw": self._features(trained)}
        for series, number in due:
            for network, features in banks.items():
                folder = self._out / "-".join(part for part in (network, series) if part)
                folder.mkdir(parents=True, exist_ok=True)
                np.savez(
                    folder / f"round-{number:04d}.npz",
                    features=features,
                    labels=self._labels,
                    step=step,
                    epoch=epoch,
                    lr=lr,
                )

    @torch.no_grad()
    def _features(self, network: Network) -> np.ndarray[Any, np.dtype[np.float32]]:
        network = copy.deepcopy(network).eval()
        generator = torch.Generator()  # the plain view draws nothing
        plain = self._view["plain"]
        size = self._spec.train.extract_batch_size
        chunks = (self._inputs[i : i + size] for i in range(0, len(self._inputs), size))
        rows = [network.features(plain(chunk, generator)).float() for chunk in chunks]
        return torch.cat(rows).numpy()


class _RecordingEngine(LocalEngine):
    """Keeps an average of its own, in step with the loop's, to have both networks at hand."""

    def __init__(
        self, network: Network, train: Any, device: torch.device, recorder: _Recorder
    ) -> None:
        super().__init__(network, train, device)
        self._averaged, self._recorder = Ema(self.network, train.ema_decay), recorder
        recorder(0, self._averaged.network, self.network)

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """The loop enters it once after every step, to average the network."""
        yield
        self._averaged.update(self.network)
        self._recorder(self._averaged.num_updates, self._averaged.network, self.network)


if __name__ == "__main__":
    main()
