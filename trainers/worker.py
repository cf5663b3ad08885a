"""What one trainer process does, in one process or under Ray Train."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch

from ..datasets.manifest import load_index, load_info
from ..datasets.reader import Reader
from ..datasets.schema import DatasetInfo
from ..datasets.splits import Split
from ..graph_store.store import GraphStore
from .batches import BatchSource
from .checkpoint import plain_state
from .config import RunSpec, TrainSpec
from .ema import Ema
from .engine import Comm, Engine, LocalComm, LocalEngine
from .evaluate import Evaluator, MakeReader
from .finish import finish, score_test
from .frozen import FeatureSource, cache_folder
from .loop import Emit, Training, num_training_steps, predictor, train, train_baseline
from .method import Method, Network
from .methods.supervised import Supervised
from .networks import Parts, build_parts, make_views, plain_view
from .run_dir import BACKBONE_ABOUT, BACKBONE_WEIGHTS, RunDir
from .running import RunningStatistics
from .still_engine import StillEngine, has_nothing_to_train

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


def run_job(
    job: Job,
    make_engine: MakeEngine,
    device: torch.device,
    emit: Emit,
    should_pause: Callable[[], bool],
) -> None:
    """Train the baseline and the method, then deliver; every rank runs it.

    Raises:
        Paused: `should_pause` said so on rank 0, and a checkpoint was made.
    """
    spec = job.spec
    if spec.train.threads_per_worker:
        torch.set_num_threads(spec.train.threads_per_worker)
    torch.use_deterministic_algorithms(True, warn_only=True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    info = load_info(spec.data.uri)
    split = Split.load(job.split_uri)
    _run_baseline(job, make_engine, device, emit, info, split)
    parts = build_parts(spec, spec.method, info.shape, info.num_classes)
    training = _training(job, spec.method, parts, make_engine, device, emit, info, split)
    training.should_pause = should_pause
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
    if training.is_first:
        _write_backbone(job.run, parts)
    finish(training, info, load_index(spec.data.uri).keys, split.rows)


def _training(
    job: Job,
    method: Method,
    parts: Parts,
    make_engine: MakeEngine,
    device: torch.device,
    emit: Emit,
    info: DatasetInfo,
    split: Split,
) -> Training:
    spec = job.spec
    num_classes = len(info.classes)
    views = make_views(spec.data, parts.shape)
    ema = Ema(parts.network.to(device), spec.train.ema_decay)
    engine = make_engine(parts.network, spec.train, device)
    make_reader = _readers(spec, job.run, parts, info, device, engine.comm)
    evaluator = Evaluator(
        spec.data.uri,
        split,
        make_reader,
        num_classes=num_classes,
        views=views,
        device=device,
        comm=engine.comm,
        chunk=spec.train.extract_batch_size,
    )
    reader = make_reader(split.rows, split.labels)
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


def _readers(
    spec: RunSpec, run: RunDir, parts: Parts, info: DatasetInfo, device: torch.device, comm: Comm
) -> MakeReader:
    """Readers of samples, or of the features that training begins with."""
    if parts.encoder is None:
        return functools.partial(
            Reader,
            spec.data.uri,
            cache_bytes=spec.data.cache_mb << 20,
            max_broken_share=spec.data.max_broken_share,
        )
    model = spec.model
    source = FeatureSource(
        spec.data.uri,
        parts.encoder,
        width=parts.shape[0],
        view=plain_view(info.shape),
        cache_dir=cache_folder(model.cache_dir, run),
        # a pretrained model is what its description says, wherever it came from
        name="pretrained" if parts.about else model.backbone,
        about={"stem": model.stem, "pixels": model.pixels, **parts.about},
        device=device,
        comm=comm,
        chunk=spec.train.extract_batch_size,
        max_broken_share=spec.data.max_broken_share,
    )
    return source.reader


def _write_backbone(run: RunDir, parts: Parts) -> None:
    """What prediction needs besides the trained network: nothing outside the run is asked for."""
    if parts.about:
        run.write_json(BACKBONE_ABOUT, dict(parts.about))
    if parts.encoder is not None:
        state = plain_state(parts.encoder)
        run.write_bytes(BACKBONE_WEIGHTS, safetensors.torch.save(state))


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
    if wanted is None and not spec.method.phases:
        return  # a method without steps leaves none to the baseline
    if not spec.train.score_test:
        return  # a baseline is its test accuracy
    if wanted == 0 or isinstance(spec.method, Supervised) or job.run.exists("baseline.json"):
        return

    def marked(record: dict[str, Any]) -> None:
        emit({**record, "baseline": True})

    parts = build_parts(spec, method, info.shape, info.num_classes)
    training = _training(job, method, parts, make_engine, device, marked, info, split)
    training.file_prefix = "baseline_"
    steps = num_training_steps(training) if wanted is None else wanted
    train_baseline(training, steps)
    score = score_test(training, predictor(training))
    if training.is_first:
        numbers = {"baseline/test/accuracy": score.accuracy, "baseline/steps": float(steps)}
        job.run.write_json("baseline.json", numbers)
    training.engine.comm.barrier()


def local_engine(network: Network, train_spec: TrainSpec, device: torch.device) -> Engine:
    if has_nothing_to_train(network):
        return StillEngine(network, device, LocalComm())
    return LocalEngine(network, train_spec, device)
