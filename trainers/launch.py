"""A run's attempts: what is written before them, the store they share, and one process of them.

`open_session` gives the session of the engine that the run asks for; its `attempt` goes on from the
last committed checkpoint and says how it ended. On Ray: `ray_session`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch

from ..datasets.manifest import load_info
from ..graph_store.local_store import LocalStore
from ..graph_store.storage import StorageError, attempt
from ..graph_store.store import GraphStore, StoreSpec
from . import checkpoint
from .config import GraphSpec, RunSpec
from .outcome import Broke, Finished, Outcome, Paused, PausedAt
from .placement import MakePlacement
from .prepare import Prepared, forget_after
from .run_dir import RunDir, environment
from .worker import Job, local_engine, run_job

OnEvent = Callable[[dict[str, Any]], None]
# From the nodes that workers and shards run on to a reason to pause, or None.
WhyPause = Callable[[frozenset[str]], str | None]
SPLIT_FILE = "split.parquet"


@runtime_checkable
class Session(Protocol):
    """The attempts of one run. `close` stops what they share."""

    @property
    def holds_shards(self) -> bool:
        """Whether shards are there, and keep their room, while no attempt goes on."""
        ...

    def attempt(self, num_workers: int, why_pause: WhyPause) -> Outcome:
        """Go on from the last committed checkpoint to the end, a pause or a failure.

        Raises:
            Exception: What the run's own code raised, where there is one process.
        """
        ...

    def newest_checkpoint(self) -> str | None:
        """Name of the last committed checkpoint."""
        ...

    def close(self) -> None: ...


def open_session(
    spec: RunSpec,
    run: RunDir,
    prepared: Prepared,
    *,
    make_placement: MakePlacement,
    on_event: OnEvent,
) -> Session:
    """Write what every attempt reads, and be ready for the first one.

    Args:
        make_placement: Plans, on Ray, where the run's processes go.
    """
    run.write_text("config.toml", spec.to_toml())
    run.write_json("environment.json", environment())
    split_uri = run.child(SPLIT_FILE)
    attempt(lambda: prepared.split.save(split_uri), uri=split_uri, doing="writing")
    for damaged in prepared.skipped:
        checkpoint.set_aside(run, damaged)
        on_event({"kind": "skipped", "checkpoint": damaged.name, "reason": damaged.reason})
    if spec.train.engine == "local":
        return LocalSession(spec, run, prepared, on_event)
    from .ray_session import RaySession

    return RaySession(spec, run, prepared, make_placement, on_event)


def newest_checkpoint(run: RunDir) -> str | None:
    """Name of the last committed checkpoint."""
    done = checkpoint.committed(run)
    return done[-1] if done else None


class LocalSession:
    """Attempts in this process."""

    holds_shards = False

    def __init__(self, spec: RunSpec, run: RunDir, prepared: Prepared, on_event: OnEvent) -> None:
        self._spec, self._run, self._prepared = spec, run, prepared
        self._on_event = on_event

    def newest_checkpoint(self) -> str | None:
        return newest_checkpoint(self._run)

    def attempt(self, num_workers: int, why_pause: WhyPause) -> Outcome:
        """See `Session.attempt`; the process is the one worker."""
        resume_from = self.newest_checkpoint()
        forget_after(self._run, resume_from)
        store = self._open_store(resume_from)
        job = Job(self._spec, self._run, self._run.child(SPLIT_FILE), store, resume_from)
        try:
            with _own_torch_settings():
                run_job(
                    job,
                    local_engine,
                    local_device(),
                    self._on_event,
                    lambda: why_pause(frozenset()) is not None,
                )
        except Paused as paused:
            return PausedAt(paused.checkpoint)
        except StorageError as error:
            return Broke(str(error))
        finally:
            if store is not None:
                store.close()
        return Finished()

    def close(self) -> None:
        """Nothing to do: attempts leave nothing behind."""

    def _open_store(self, resume_from: str | None) -> GraphStore | None:
        """An empty store, or the checkpoint's; None where no graph is used."""
        spec = self._spec
        if not spec.method.uses_graph:
            return None
        graph = spec.graph
        device = str(local_device()) if graph.device == "auto" else graph.device
        if resume_from is not None:
            uri = checkpoint.store_uri(self._run, resume_from)
            return LocalStore.restore(uri, device=device)
        labels = self._prepared.split.labels
        store = LocalStore(
            StoreSpec(
                num_nodes=len(labels),
                dim=spec.model.feature_dim,
                num_classes=load_info(spec.data.uri).num_classes,
                k=graph.k,
                device=device,
                **graph_options(graph),
            )
        )
        store.put_labels(torch.arange(len(labels)), labels)
        return store


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


def graph_options(graph: GraphSpec) -> dict[str, Any]:
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
