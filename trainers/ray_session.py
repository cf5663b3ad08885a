"""A run's attempts on Ray: a store of shard actors, and a DeepSpeed worker group per attempt.

The store belongs to the driver and outlives worker groups: after an attempt was lost, the shards
that are left are set back to the checkpoint that the next attempt goes on from; shards that cannot
be reached are replaced by new ones that read the checkpoint.
"""

from __future__ import annotations

import hashlib
import math
import os
from typing import Any

import ray
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer

from ..datasets.manifest import load_info
from ..graph_store.facade import GraphStore as StoreFactory
from ..graph_store.ray_store import RayStore
from ..graph_store.store import StoreLostError
from . import checkpoint
from .board import PauseAsked, Watcher, join, open_board
from .config import RunSpec
from .launch import SPLIT_FILE, OnEvent, WhyPause, graph_options, newest_checkpoint
from .outcome import Broke, Finished, Outcome, Paused, PausedAt, classify
from .placement import MakePlacement
from .prepare import Prepared, forget_after
from .queues import queues_told
from .reservation import Reservation, remove_orphans, reserve, room
from .run_dir import RunDir
from .worker import Job, run_job

_LOG = "store_log"
# Settings of Ray Train, unless the environment has them.
_RAY_TRAIN = {
    # The supervisor looks after machines that go away, the shards' among them.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    # How soon the end of the workers, or of one of them, is noticed: 2 s unless told.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}


class RaySession:
    """See `launch.Session`. Ray must be running; the calling process owns the shards."""

    def __init__(
        self,
        spec: RunSpec,
        run: RunDir,
        prepared: Prepared,
        make_placement: MakePlacement,
        on_event: OnEvent,
    ) -> None:
        self._spec, self._run, self._prepared = spec, run, prepared
        self._make_placement, self._on_event = make_placement, on_event
        self._store: RayStore | None = None
        self._reservation: Reservation | None = None

    @property
    def holds_shards(self) -> bool:
        """See `Session.holds_shards`."""
        return self._reservation is not None and self._spec.method.uses_graph

    def newest_checkpoint(self) -> str | None:
        return newest_checkpoint(self._run)

    def attempt(self, num_workers: int, why_pause: WhyPause) -> Outcome:
        """See `Session.attempt`; failures are told, not raised, but for those of `on_event`."""
        resume_from = self.newest_checkpoint()
        forget_after(self._run, resume_from)
        if self._reservation is None:
            wanted = room(self._spec, trainers=num_workers)
            self._reservation = reserve(wanted, self._make_placement, self._on_event)
        try:
            store = self._ready_store(resume_from)
        except (RayError, StoreLostError, TimeoutError) as error:
            self._give_back()
            return classify(error)
        shard_nodes = self._tell_shards(store) if store is not None else frozenset[str]()
        job = Job(self._spec, self._run, self._run.child(SPLIT_FILE), store, resume_from)
        board = open_board()
        watcher = Watcher(board, self._on_event, why_pause, shard_nodes=shard_nodes)
        nodes = _living_nodes()
        self._reservation.release_trainers()
        with queues_told(store, self._on_event):
            failure = _fit(job, board, num_workers, self._reservation)
        watcher.close()
        _kill(board)
        if failure is not None:
            remove_orphans()
        if watcher.checkpoint is not None or not nodes <= _living_nodes():
            self._give_back()  # what comes next is planned anew
        if watcher.error is not None:
            raise watcher.error  # the caller's own, of what it does with records
        if failure is not None:
            return classify(failure)
        if watcher.checkpoint is not None:
            return PausedAt(watcher.checkpoint)
        if not self._run.exists("result.json"):
            return Broke("the workers ended without a result")
        self._drop_store()
        self._run.remove(_LOG)
        return Finished()

    def close(self) -> None:
        """Stop the shards and give their room back."""
        self._give_back()

    def _ready_store(self, resume_from: str | None) -> RayStore | None:
        """The store as checkpoint `resume_from` left it, an empty one without; None: no graph."""
        if not self._spec.method.uses_graph:
            return None
        if self._store is not None and resume_from is not None:
            try:
                self._store.load(checkpoint.store_uri(self._run, resume_from))
                return self._store
            except (RayError, StoreLostError):
                pass  # new shards read the same checkpoint
        self._drop_store()
        if resume_from is not None:
            self._store = self._restore(checkpoint.store_uri(self._run, resume_from))
        else:
            self._store = self._create()
        return self._store

    def _tell_shards(self, store: RayStore) -> frozenset[str]:
        """Tell where the shards are; their nodes."""
        found = store.describe()
        shards = {s.rank: {"node": s.node_id, "pid": s.pid} for s in found}
        self._on_event({"kind": "shards", "shards": shards})
        return frozenset(s.node_id for s in found)

    def _options(self) -> dict[str, Any]:
        """What create and restore share."""
        spec = self._spec
        # Named after the run's directory, so that runs beside each other on a cluster keep apart.
        digest = hashlib.blake2b(self._run.uri.encode(), digest_size=6).hexdigest()
        assert self._reservation is not None
        return {
            "num_shards": spec.graph.num_shards,
            "device": spec.graph.device,
            "name": f"store-{digest}",
            "log_uri": self._log_uri(),
            "cpus_per_shard": spec.resources.cpus_per_shard,
            "gpus_per_shard": spec.resources.gpus_per_shard,
            "scheduling_strategy": self._reservation.shard_strategy,
        }

    def _log_uri(self) -> str | None:
        asked = self._spec.graph.log_uri
        if asked != "auto":
            return asked or None
        # An object store would take a request per put; a checkpoint is what is left without a log.
        return self._run.child(_LOG) if self._run.local_path is not None else None

    def _create(self) -> RayStore:
        spec, labels = self._spec, self._prepared.split.labels
        store = StoreFactory.create(
            num_nodes=len(labels),
            dim=spec.model.feature_dim,
            num_classes=load_info(spec.data.uri).num_classes,
            k=spec.graph.k,
            **graph_options(spec.graph),
            **self._options(),
        )
        try:
            store.put_labels(torch.arange(len(labels)), labels)
        except BaseException:
            store.close()
            raise
        return store

    def _restore(self, uri: str) -> RayStore:
        return StoreFactory.restore(uri, **self._options())

    def _drop_store(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _give_back(self) -> None:
        self._drop_store()
        if self._reservation is not None:
            self._reservation.close()
            self._reservation = None


class _Trainer(TorchTrainer):  # type: ignore[misc]
    """Without Ray's cleaner of placement groups: a detached process per attempt that stays for ever
    where the controller was killed and no dashboard runs. Ray itself removes the groups of a job
    that has ended, and `remove_orphans` those of a controller that died before."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if type(c).__name__ != "PlacementGroupCleanerCallback"]


def _fit(job: Job, board: Any, num_workers: int, reservation: Reservation) -> BaseException | None:
    """Run a worker group to its end; the error that ended it, or None."""
    for name, value in _RAY_TRAIN.items():
        os.environ.setdefault(name, value)
    resources: dict[str, float] = {"CPU": job.spec.resources.cpus_per_trainer}
    use_gpu = job.spec.resources.gpus_per_trainer > 0
    if use_gpu:
        resources["GPU"] = job.spec.resources.gpus_per_trainer
    # Ray Train keeps its own bookkeeping here; checkpoints are ours, in the run's directory.
    storage = job.run.local_path
    trainer = _Trainer(
        _train_worker,
        train_loop_config={"job": job, "board": board},
        scaling_config=ScalingConfig(
            num_workers=num_workers,
            use_gpu=use_gpu,
            resources_per_worker=resources,
            **reservation.scaling,
        ),
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        run_config=RunConfig(
            name="ray_train",
            storage_path=str(storage.resolve()) if storage is not None else job.run.uri,
            # Another attempt begins at another checkpoint: that is the supervisor's to decide.
            failure_config=FailureConfig(max_failures=0, max_preemption_failures=0),
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        return error
    return None


def _living_nodes() -> frozenset[str]:
    return frozenset(node["NodeID"] for node in ray.nodes() if node["Alive"])


def _kill(actor: Any) -> None:
    try:
        ray.kill(actor)
    except RayError:
        return


def _train_worker(config: dict[str, Any]) -> None:
    import ray.train
    import ray.train.torch

    from .deepspeed_engine import deepspeed_engine

    job: Job = config["job"]
    board = config["board"]
    context = ray.train.get_context()
    join(board, context.get_world_rank(), os.getpid())
    if job.spec.train.threads_per_worker is None:
        local_ranks = max(context.get_local_world_size(), 1)
        torch.set_num_threads(max(1, math.floor((os.cpu_count() or 1) / local_ranks)))
    # Ray hides no GPU from a worker that asked for none; such a worker stays on the CPU.
    on_gpu = job.spec.resources.gpus_per_trainer > 0
    device = ray.train.torch.get_device() if on_gpu else torch.device("cpu")
    asked = PauseAsked(board) if context.get_world_rank() == 0 else None
    try:
        run_job(
            job,
            deepspeed_engine,
            device,
            lambda event: board.add.remote(event),
            lambda: asked is not None and asked(),
        )
    except Paused as paused:
        if asked is not None:
            ray.get(board.add.remote({"kind": "paused", "checkpoint": paused.checkpoint}))
    finally:
        if asked is not None:
            asked.close()
    ray.train.report({})
