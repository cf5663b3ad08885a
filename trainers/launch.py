"""The driver of a run: split, store actors, worker group; one process or Ray."""

from __future__ import annotations

import hashlib
import math
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..datasets.manifest import load_info
from ..graph_store.local_store import LocalStore
from ..graph_store.store import GraphStore, StoreSpec
from . import checkpoint
from .config import GraphSpec, RunSpec
from .prepare import Prepared, forget_after
from .run_dir import RunDir, environment
from .worker import Job, local_engine, run_job

OnEvent = Callable[[dict[str, Any]], None]
SPLIT_FILE = "split.parquet"


class RunFailed(RuntimeError):
    """The run broke while training; the message is the first cause."""


def launch(
    spec: RunSpec, run: RunDir, prepared: Prepared, *, on_event: OnEvent
) -> dict[str, float]:
    """Run what `prepare` let through to the end; returns the numbers of `result.json`.

    Raises:
        RunFailed: The run broke; the run directory holds its last checkpoint.
    """
    if run.exists("result.json"):
        return dict(run.read_json("result.json"))
    run.write_text("config.toml", spec.to_toml())
    run.write_json("environment.json", environment())
    prepared.split.save(run.child(SPLIT_FILE))
    forget_after(run, prepared.checkpoint)
    store = _open_store(spec, run, prepared)
    try:
        if store is not None and prepared.checkpoint is None:
            labels = prepared.split.labels
            store.put_labels(torch.arange(len(labels)), labels)
        job = Job(spec, run, run.child(SPLIT_FILE), store, prepared.checkpoint)
        if spec.train.engine == "local":
            with _own_torch_settings():
                run_job(job, local_engine, local_device(), on_event)
        else:
            _run_on_ray(job, on_event)
    finally:
        if store is not None:
            store.close()
    return dict(run.read_json("result.json"))


@contextmanager
def _own_torch_settings() -> Iterator[None]:
    """Leaves the caller's thread count and determinism as they were."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)


def local_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _open_store(spec: RunSpec, run: RunDir, prepared: Prepared) -> GraphStore | None:
    """An empty store, or the checkpoint's; None where no graph is used."""
    if not spec.method.uses_graph:
        return None
    name = prepared.checkpoint
    saved = None if name is None else checkpoint.store_uri(run, name)
    make = _local_store if spec.train.engine == "local" else _ray_store
    num_classes = load_info(spec.data.uri).num_classes
    return make(spec, run, len(prepared.split.rows), num_classes, saved)


def _local_store(
    spec: RunSpec, run: RunDir, num_nodes: int, num_classes: int, saved: str | None
) -> GraphStore:
    graph = spec.graph
    device = str(local_device()) if graph.device == "auto" else graph.device
    if saved is not None:
        return LocalStore.restore(saved, device=device)
    return LocalStore(
        StoreSpec(
            num_nodes=num_nodes,
            dim=spec.model.feature_dim,
            num_classes=num_classes,
            k=graph.k,
            device=device,
            **_graph_options(graph),
        )
    )


def _graph_options(graph: GraphSpec) -> dict[str, Any]:
    """What both kinds of store are told about their graph."""
    return {
        "metric": graph.metric,
        "dtype": graph.dtype,
        "backend": graph.backend,
        "update": graph.update,
        "tolerance": graph.tolerance,
        "slack": graph.slack or None,
        "recall_target": graph.recall_target,
    }


def _ray_store(
    spec: RunSpec, run: RunDir, num_nodes: int, num_classes: int, saved: str | None
) -> GraphStore:
    from ..graph_store.facade import GraphStore as StoreFactory

    graph, resources = spec.graph, spec.resources
    # Named after the run's directory, so that runs beside each other on a cluster keep apart.
    name = f"store-{hashlib.blake2b(run.uri.encode(), digest_size=6).hexdigest()}"
    if saved is not None:
        return StoreFactory.restore(
            saved,
            num_shards=graph.num_shards,
            device=graph.device,
            name=name,
            cpus_per_shard=resources.cpus_per_shard,
            gpus_per_shard=resources.gpus_per_shard,
        )
    return StoreFactory.create(
        num_nodes=num_nodes,
        dim=spec.model.feature_dim,
        num_classes=num_classes,
        k=graph.k,
        num_shards=graph.num_shards,
        device=graph.device,
        **_graph_options(graph),
        name=name,
        cpus_per_shard=resources.cpus_per_shard,
        gpus_per_shard=resources.gpus_per_shard,
    )


def _run_on_ray(job: Job, on_event: OnEvent) -> None:
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    spec = job.spec
    resources: dict[str, float] = {"CPU": spec.resources.cpus_per_trainer}
    use_gpu = spec.resources.gpus_per_trainer > 0
    if use_gpu:
        resources["GPU"] = spec.resources.gpus_per_trainer
    board = ray.remote(num_cpus=0)(_Board).remote()
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, stop, on_event), daemon=True)
    watcher.start()
    # Ray Train keeps its own bookkeeping here; checkpoints are ours, in the run's directory.
    storage = job.run.local_path
    trainer = TorchTrainer(
        _train_worker,
        train_loop_config={"job": job, "board": board},
        scaling_config=ScalingConfig(
            num_workers=spec.train.num_workers,
            use_gpu=use_gpu,
            resources_per_worker=resources,
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name="ray_train",
            storage_path=str(storage.resolve()) if storage is not None else job.run.uri,
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise RunFailed(root_cause(error)) from error
    finally:
        stop.set()
        watcher.join()
        ray.kill(board)


def root_cause(error: BaseException) -> str:
    """The message of the worker's own exception, without Ray's wrappings and tracebacks."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        error = next(iter(failures.values()))
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    lines = [line for line in str(error).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _train_worker(config: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch

    from .deepspeed_engine import deepspeed_engine

    job: Job = config["job"]
    board = config["board"]
    context = ray.train.get_context()
    if job.spec.train.threads_per_worker is None:
        local_ranks = max(context.get_local_world_size(), 1)
        torch.set_num_threads(max(1, math.floor((os.cpu_count() or 1) / local_ranks)))
    # Ray hides no GPU from a worker that asked for none; such a worker stays on the CPU.
    on_gpu = job.spec.resources.gpus_per_trainer > 0
    device = ray.train.torch.get_device() if on_gpu else torch.device("cpu")
    run_job(job, deepspeed_engine, device, lambda event: board.add.remote(event))
    ray.train.report({})


class _Board:
    """Where rank 0 leaves events for the driver. A Ray actor."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []

    def add(self, event: dict[str, Any]) -> None:
        self._events.append(event)

    def take(self) -> list[dict[str, Any]]:
        out, self._events = self._events, []
        return out


def _watch(board: Any, stop: threading.Event, on_event: OnEvent) -> None:
    import ray

    while True:
        last = stop.wait(0.5)
        for event in ray.get(board.take.remote()):
            on_event(event)
        if last:
            return
