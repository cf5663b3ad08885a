"""How an attempt to run to the end can end, and what kind of failure an exception tells of. Pure.

A run is made of attempts: each goes on from the last committed checkpoint. Whether another attempt
follows is decided elsewhere (`cluster.supervise`); here is what it decides upon.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finished:
    """The run's result is written."""


@dataclass(frozen=True)
class PausedAt:
    """The run made a checkpoint because it was asked to, and stopped."""

    checkpoint: str


@dataclass(frozen=True)
class Lost:
    """A process or a machine went away; the same attempt may succeed."""

    reason: str


@dataclass(frozen=True)
class Broke:
    """The run's own fault: bad data, no memory, a full disk. It would break again."""

    reason: str


Outcome = Finished | PausedAt | Lost | Broke


class Paused(Exception):
    """Raised in the workers after the checkpoint that a pause asked for.

    Attributes:
        checkpoint: Its name.
    """

    def __init__(self, checkpoint: str) -> None:
        super().__init__(f"paused at checkpoint {checkpoint}")
        self.checkpoint = checkpoint


class RunFailed(RuntimeError):
    """The run broke while training; the message is the first cause."""


class RunPaused(RuntimeError):
    """The run was asked to stop and made a checkpoint first; it can be resumed."""


# Exceptions of Ray that say that a process or machine went away, by name: this module imports none.
_GONE = frozenset(
    {
        "ActorDiedError",
        "ActorUnavailableError",
        "ActorUnschedulableError",
        "LocalRayletDiedError",
        "NodeDiedError",
        "NodePreemptedError",
        "ObjectLostError",
        "OutOfMemoryError",  # Ray's: its memory monitor killed the process
        "OwnerDiedError",
        "PreemptionError",
        "RayActorError",
        "RaySystemError",
        "WorkerCrashedError",
        "WorkerHealthCheckFailedError",
        "WorkerHealthCheckTimeoutError",
        "WorkerGroupStartupTimeoutError",
        # ours
        "GroupChangedError",
        "PeerLostError",
        "StoreLostError",
        # torch.distributed
        "DistNetworkError",
        "DistStoreError",
    }
)
# Exceptions whose messages may quote a lost connection, but not to a process of the run.
_OWN = frozenset({"StorageError", "JournalError"})
# What gloo and NCCL say in plain RuntimeErrors when a peer's process has gone.
_PEER_GONE = (
    "connection closed by peer",
    "connection reset by peer",
    "broken pipe",
    "connection refused",
    "timed out waiting",
    "socket timeout",
    "nccl communicator was aborted",
    "remote process exited",
    "connectfullmesh failed",
)


def tells_of_loss(error: BaseException) -> bool:
    """Whether an exception says that another process went away, not that this one erred."""
    names = {t.__name__ for t in type(error).__mro__}
    if names & {"OutOfMemoryError"} and "torch" in type(error).__module__:
        return False
    if names & _OWN:
        return False
    if names & _GONE:
        return True
    if not isinstance(error, RuntimeError | ConnectionError):
        return False
    message = str(error).lower()
    return any(words in message for words in _PEER_GONE)


def chain_of(error: BaseException) -> list[BaseException]:
    """An exception and all that it wraps, outermost first."""
    found: list[BaseException] = []
    inner: object = error
    # Ray's errors may name their cause in words, after they were pickled.
    while isinstance(inner, BaseException) and inner not in found:
        found.append(inner)
        inner = getattr(inner, "cause", None) or inner.__cause__
    return found


def root_cause(error: BaseException) -> str:
    """The message of the innermost exception, without wrappings and tracebacks."""
    lines = [line for line in str(chain_of(error)[-1]).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(chain_of(error)[-1]).__name__


def classify(error: BaseException) -> Lost | Broke:
    """What a failed attempt came from.

    An exception of Ray Train carries one exception per failed worker (`worker_failures`). Where one
    of them is a fault of its own, that is the cause, and what others say of lost peers follows from
    it; where all tell of processes that went away, the attempt was lost.
    """
    failures = getattr(error, "worker_failures", None)
    errors = list(failures.values()) if failures else [error]
    faults = [e for e in errors if not any(tells_of_loss(inner) for inner in chain_of(e))]
    if faults:
        return Broke(root_cause(faults[0]))
    return Lost(root_cause(errors[0]))
