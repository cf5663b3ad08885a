"""What one trainer process does, in one process or under Ray Train."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..datasets.manifest import load_index, load_info
from ..datasets.reader import Reader
from ..datasets.schema import DatasetInfo
from ..datasets.splits import Split
from ..datasets.transforms import make_view
from ..graph_store.store import GraphStore
from .backbones.build import build_backbone
from .batches import BatchSource, View, Views
from .config import DataSpec, RunSpec, TrainSpec
from .ema import Ema
from .engine import Engine, LocalEngine
from .evaluate import Evaluator
from .finish import finish, score_test
from .loop import Emit, Training, num_training_steps, train, train_baseline
from .method import Method, Network, ViewName
from .methods.supervised import Supervised
from .run_dir import RunDir
from .seeds import derive_seed

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
    if training.is_first and job.resume_from is None:
        emit(
            {
                "kind": "start",
                "epochs": spec.train.epochs,
                "num_steps": num_training_steps(spec, split.labels),
                "num_nodes": len(split.rows),
                "num_labeled": int((split.labels >= 0).sum()),
            }
        )
    train(training, resume_from=job.resume_from)
    finish(training, info, load_index(spec.data.uri).keys, split.rows)


def make_views(data: DataSpec, shape: tuple[int, ...]) -> Views:
    """The three views that batches are seen through."""
    names: dict[ViewName, str] = {"plain": "plain", "weak": data.weak, "strong": data.strong}
    return {name: _channels_last(make_view(view, shape)) for name, view in names.items()}


def _channels_last(view: View) -> View:
    """Images as the convolutions like them; their weights may stay as they are (DeepSpeed wants
    them so). On a CPU 1.6 times as fast without gradients, 1.25 times with."""

    def call(inputs: Tensor, generator: torch.Generator) -> Tensor:
        out = view(inputs, generator)
        return out.contiguous(memory_format=torch.channels_last) if out.ndim == 4 else out

    return call


def build_network(
    spec: RunSpec, method: Method, shape: tuple[int, ...], num_classes: int
) -> Network:
    """The untrained network of a run, a function of its seed alone; leaves the global RNG alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(spec.seed, "init"))
        backbone = build_backbone(spec.model.backbone, shape, spec.model.feature_dim)
        return method.build(backbone, spec.model.feature_dim, num_classes)


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
    shard_ids = torch.as_tensor(load_index(spec.data.uri).shard_ids)[split.rows]
    return Training(
        spec=spec,
        method=method,
        labels=split.labels,
        groups=shard_ids,
        engine=engine,
        ema=ema,
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
    steps = spec.train.baseline_steps
    if steps is None:
        steps = num_training_steps(spec, split.labels)
    method = Supervised()
    if steps == 0 or isinstance(spec.method, Supervised) or job.run.exists("baseline.json"):
        return

    def marked(record: dict[str, Any]) -> None:
        emit({**record, "baseline": True})

    training = _training(job, method, make_engine, device, marked, info, split)
    training.file_prefix = "baseline_"
    train_baseline(training, steps)
    score = score_test(training)
    if training.is_first:
        numbers = {"baseline/test/accuracy": score.accuracy, "baseline/steps": float(steps)}
        job.run.write_json("baseline.json", numbers)
    training.engine.comm.barrier()


def local_engine(network: Network, train_spec: TrainSpec, device: torch.device) -> Engine:
    return LocalEngine(network, train_spec, device)
