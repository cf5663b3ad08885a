"""What one trainer process does, in one process or under Ray Train."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..datasets.manifest import load_index, load_info
from ..datasets.reader import Reader
from ..datasets.schema import DatasetInfo
from ..datasets.splits import Split
from ..graph_store.store import GraphStore
from .batches import BatchSource
from .config import RunSpec, TrainSpec
from .ema import Ema
from .engine import Engine, LocalEngine
from .evaluate import Evaluator
from .finish import finish, score_test
from .loop import Emit, Training, num_training_steps, predictor, train, train_baseline
from .method import Method, Network
from .methods.supervised import Supervised
from .networks import build_network, make_views
from .run_dir import RunDir
from .running import RunningStatistics

MakeEngine = Callable[[Network, TrainSpec, torch.device], Engine]


@dataclass(frozen=True)
class Job:
    """What every worker of a run is told. Picklable.

    Attributes:
        split_uri: Where the driver wrote the split: rows and masked labels, no hidden ones.
        store: None for methods without a graph.
        resume_from: Name of a committed checkpoint.
    """

    spec: RunSpec
    run: RunDir
    split_uri: str
    store: GraphStore | None
    resume_from: str | None


def run_job(job: Job, make_engine: MakeEngine, device: torch.device, emit: Emit) -> None:
    """Train the baseline and the method, then deliver; every rank runs it."""
    spec = job.spec
    if spec.train.threads_per_worker:
        torch.set_num_threads(spec.train.threads_per_worker)
    torch.use_deterministic_algorithms(True, warn_only=True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    info = load_info(spec.data.uri)
    split = Split.load(job.split_uri)
    _run_baseline(job, make_engine, device, emit, info, split)
    training = _training(job, spec.method, make_engine, device, emit, info, split)
    if training.is_first:
        emit(
            {
                "kind": "start",
                "epochs": spec.train.epochs,
                "num_steps": num_training_steps(training),
                "num_nodes": len(split.rows),
                "num_labeled": int((split.labels >= 0).sum()),
            }
        )
    train(training, resume_from=job.resume_from)
    finish(training, info, load_index(spec.data.uri).keys, split.rows)


def _training(
    job: Job,
    method: Method,
    make_engine: MakeEngine,
    device: torch.device,
    emit: Emit,
    info: DatasetInfo,
    split: Split,
) -> Training:
    spec = job.spec
    num_classes = len(info.classes)
    views = make_views(spec.data, info.shape)
    network = build_network(spec, method, info.shape, num_classes)
    ema = Ema(network.to(device), spec.train.ema_decay)
    engine = make_engine(network, spec.train, device)
    cache_bytes = spec.data.cache_mb << 20
    reader = Reader(
        spec.data.uri,
        split.rows,
        split.labels,
        cache_bytes=cache_bytes,
        max_broken_share=spec.data.max_broken_share,
    )
    evaluator = Evaluator(
        spec.data.uri,
        split,
        num_classes=num_classes,
        views=views,
        device=device,
        comm=engine.comm,
        cache_bytes=cache_bytes,
        chunk=spec.train.extract_batch_size,
    )
    store = job.store if method.uses_graph else None
    return Training(
        spec=spec,
        method=method,
        labels=split.labels,
        groups=reader.groups,
        engine=engine,
        ema=ema,
        statistics=RunningStatistics(
            method.statistics(num_classes), method.statistics_decay, device
        ),
        source=BatchSource(reader, views, store, device, spec.seed),
        evaluator=evaluator,
        run=job.run,
        emit=emit,
    )


def _run_baseline(
    job: Job,
    make_engine: MakeEngine,
    device: torch.device,
    emit: Emit,
    info: DatasetInfo,
    split: Split,
) -> None:
    """Supervised training on the labeled nodes alone, judged like the method; done once a run."""
    spec = job.spec
    method = Supervised()
    wanted = spec.train.baseline_steps
    if wanted == 0 or isinstance(spec.method, Supervised) or job.run.exists("baseline.json"):
        return

    def marked(record: dict[str, Any]) -> None:
        emit({**record, "baseline": True})

    training = _training(job, method, make_engine, device, marked, info, split)
    training.file_prefix = "baseline_"
    steps = num_training_steps(training) if wanted is None else wanted
    train_baseline(training, steps)
    score = score_test(training, predictor(training))
    if training.is_first:
        numbers = {"baseline/test/accuracy": score.accuracy, "baseline/steps": float(steps)}
        job.run.write_json("baseline.json", numbers)
    training.engine.comm.barrier()


def local_engine(network: Network, train_spec: TrainSpec, device: torch.device) -> Engine:
    return LocalEngine(network, train_spec, device)
