"""What a failed attempt came from."""

from __future__ import annotations

import pytest
import ray.exceptions
import torch
from labelmesh.graph_store.sharded_view import PeerLostError
from labelmesh.graph_store.storage import StorageError
from labelmesh.graph_store.store import StoreLostError
from labelmesh.trainers.outcome import Broke, Lost, classify, root_cause, tells_of_loss


class GroupError(Exception):
    """As Ray Train's: one exception per failed worker."""

    def __init__(self, **failures: BaseException) -> None:
        super().__init__("2 workers failed")
        self.worker_failures = {int(rank[1:]): error for rank, error in failures.items()}


@pytest.mark.parametrize(
    "error",
    [
        ray.exceptions.WorkerCrashedError(),
        ray.exceptions.ActorDiedError(),
        ray.exceptions.NodeDiedError("node 1"),
        ray.exceptions.OutOfMemoryError("killed by the memory monitor"),
        StoreLostError("a shard died"),
        PeerLostError("shard 1 has gone"),
        ConnectionResetError("Connection reset by peer"),
        RuntimeError("[gloo/transport/tcp/pair.cc:536] Connection closed by peer [10.0.0.2]:4711"),
    ],
)
def test_processes_that_went_away_are_a_loss(error: BaseException) -> None:
    assert tells_of_loss(error)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("16 of 200 samples cannot be read"),
        RuntimeError("loss is nan"),
        torch.OutOfMemoryError("CUDA out of memory"),
        OSError(28, "No space left on device"),
        StorageError("s3://bucket/run: connection refused"),
        KeyError("features"),
    ],
)
def test_a_fault_of_the_run_is_none(error: BaseException) -> None:
    assert not tells_of_loss(error)


def test_a_fault_among_losses_is_the_cause() -> None:
    lost = RuntimeError("Connection closed by peer")
    outcome = classify(GroupError(_0=lost, _1=ValueError("loss is nan at step 7")))
    assert outcome == Broke("loss is nan at step 7")


def test_losses_alone_are_a_loss() -> None:
    lost = RuntimeError("Connection closed by peer")
    outcome = classify(GroupError(_0=lost, _1=ray.exceptions.WorkerCrashedError()))
    assert outcome == Lost("Connection closed by peer")


def test_wrapped_errors_are_looked_into() -> None:
    inner, outer = StoreLostError("a shard died"), RuntimeError("worker 0")
    outer.__cause__ = inner
    assert classify(outer) == Lost("a shard died")
    assert root_cause(outer) == "a shard died"


def test_a_cause_in_words_ends_the_search() -> None:
    """Errors of Ray's tasks have one after they were pickled."""
    error = RuntimeError("task failed\nValueError: no such colour")
    error.cause = "ValueError('no such colour')"  # type: ignore[attr-defined]
    assert root_cause(error) == "ValueError: no such colour"
