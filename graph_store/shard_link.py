"""The wire from a client to the shard actors: requests, and what happens when a shard has died.

Every request names the incarnation of the shard that it is meant for. Ray restarts an actor that
died; one that keeps a log replays it and is then as it was, under another incarnation. So after an
error a client asks all shards who they are, and repeats what it has asked for.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayTaskError

from .shard_status import ShardStatus
from .sharded_view import GroupChangedError, PeerLostError
from .store import ShardChangedError, StoreLostError
from .wire import to_arrays, to_tensors

T = TypeVar("T")

# Deaths that one call of a client outlives.
MAX_RECOVERIES = 10


class ShardLink:
    """Handles of the shards, and which processes they are. Every copy finds out by itself.

    Args:
        actors: `ShardActor` handles, by rank.
        is_logged: Whether shards come back as they were.
        recovery_timeout_s: How long to wait for shards that are restarted.
        backend: How the shards talk; see `ShardOptions`.
    """

    def __init__(
        self, actors: Sequence[Any], *, is_logged: bool, recovery_timeout_s: float, backend: str
    ) -> None:
        self.actors = list(actors)
        self._is_logged = is_logged
        self._timeout_s = recovery_timeout_s
        self._backend = backend
        self._incarnations: list[str] = []
        self._group: str | None = None
        self._met: list[str] = []  # who formed it

    def __getstate__(self) -> dict[str, Any]:
        # The first collective of a copy forms a group of its own: what a client that died has
        # left unfinished on some shards ends with the group it was begun in.
        return {**self.__dict__, "_group": None, "_met": []}

    @property
    def size(self) -> int:
        return len(self.actors)

    def status(self, timeout_s: float | None = None) -> tuple[ShardStatus, ...]:
        """All shards; waits for those that are being restarted.

        Raises:
            StoreLostError: A shard is gone for good, or is not back in time.
        """
        limit = self._timeout_s if timeout_s is None else timeout_s
        refs = [actor.status.options(max_task_retries=-1).remote() for actor in self.actors]
        try:
            return tuple(ray.get(refs, timeout=limit))
        except RayActorError as error:
            raise _lost(error) from None
        except GetTimeoutError:
            ready, _ = ray.wait(refs, num_returns=len(refs), timeout=0)
            missing = [rank for rank, ref in enumerate(refs) if ref not in ready]
            raise StoreLostError(
                f"shards {missing} of {self.size} did not come back within {limit:g} s; is there "
                f"a node with room for them? Wait longer (recovery_timeout_s), or restore the "
                f"store from a snapshot"
            ) from None

    def find(self, timeout_s: float | None = None, *, whole: bool = True) -> None:
        """Learn who the shards are.

        Args:
            whole: Refuse shards that have lost what they held.

        Raises:
            StoreLostError: A shard has not come back as it was.
        """
        found = self.status(timeout_s)
        for shard in found:
            if whole and not shard.is_whole:
                raise StoreLostError(shard.problem)
        self._incarnations = [shard.incarnation for shard in found]

    def request(self, shard: int, lane: str, method: str, *args: Any) -> Any:
        """Send one call of a `Shard` method."""
        call = self.actors[shard].call.options(concurrency_group=lane)
        return call.remote(self._incarnations[shard], method, *to_arrays(args))

    def all(self, method: str, *args: Any) -> list[Any]:
        """Call an actor method on all shards' write lanes."""
        return self.get(
            [
                getattr(actor, method).options(concurrency_group="write").remote(known, *args)
                for actor, known in zip(self.actors, self._incarnations)
            ]
        )

    def together(self, method: str, *args: Any) -> list[Any]:
        """Call a collective actor method; only inside `collectively`."""
        return self.all(method, self._group, *args)

    def get(self, refs: Sequence[Any]) -> list[Any]:
        """Replies in order.

        Raises:
            StoreLostError: A shard died, now or earlier.
            Exception: What a shard raised; rather its own error than that another one left.
        """
        try:
            return [to_tensors(reply) for reply in ray.get(list(refs))]
        except RayActorError as error:
            raise _lost(error) from None
        except RayTaskError:
            raise min(_errors(refs), key=_rank_of_error) from None

    def patiently(self, run: Callable[[], T]) -> T:
        """Do what may be repeated; again when a shard has come back from its log."""
        for _ in range(MAX_RECOVERIES):
            try:
                return run()
            except StoreLostError as error:
                if not self._came_back(error):
                    raise
        return run()

    def collectively(self, run: Callable[[], T]) -> T:
        """Do what all shards carry out together; again, in another group, after a death."""
        for _ in range(MAX_RECOVERIES):
            try:
                self._meet()
                return run()
            except (StoreLostError, PeerLostError) as error:
                self._group = None
                if not self._came_back(error):
                    raise
            except BaseException:
                self._group = None  # the shards have left it
                raise
        self._meet()
        return run()

    def replace(self, method: str, *args: Any) -> None:
        """Call an actor method that gives shards other contents, whatever they have now."""
        for last in [False] * MAX_RECOVERIES + [True]:
            self._group = None
            try:
                self.find(whole=False)
                self._leave()
                self._incarnations = self.all(method, *args)
                return
            except (StoreLostError, PeerLostError):
                if last:
                    raise
                self.find(whole=False)  # raises where a shard is gone for good

    def _came_back(self, error: Exception) -> bool:
        """Whether what failed can be repeated: shards are whole, and were lost for a while."""
        if isinstance(error, StoreLostError):
            if not self._is_logged and not isinstance(error, ShardChangedError):
                return False
            self.find()
            return True
        # A shard that dies after its reply may tear away what was on its way to the others; and
        # a put may have met the death before this call did.
        self.find()
        return self._incarnations != self._met or isinstance(error, GroupChangedError)

    def _meet(self) -> None:
        """Let the shards form a group, and agree on which rounds are out."""
        if self.size == 1 or (self._group is not None and self._met == self._incarnations):
            return
        self._met = list(self._incarnations)
        self._leave()
        opened = self.actors[0].open_rendezvous.remote(self._incarnations[0])
        host, port = self.get([opened])[0]
        group = uuid.uuid4().hex
        self.all("join", group, host, port, self._backend)
        self.settle()
        self._group = group

    def settle(self) -> None:
        """Let all shards publish what shard 0 has: its caller may have died before it told them."""
        decided = self.get([self.request(0, "read", "decided")])[0]
        # Not on the write lane, where a round may be computed.
        self.get([self.request(shard, "put", "settle", decided) for shard in range(1, self.size)])

    def _leave(self) -> None:
        """End whatever collective is under way; it may wait for a message that never comes."""
        known = zip(self.actors, self._incarnations)
        self.get([actor.leave.remote(incarnation) for actor, incarnation in known])


def _errors(refs: Sequence[Any]) -> list[BaseException]:
    """What went wrong. Waits for all, so that no shard is left at work."""
    errors: list[BaseException] = []
    for ref in refs:
        try:
            ray.get(ref)
        except RayTaskError as error:
            errors.append(error.cause)
        except RayActorError as error:
            errors.append(_lost(error))
    return errors


def _rank_of_error(error: BaseException) -> int:
    return 0 if isinstance(error, StoreLostError) else 2 if isinstance(error, PeerLostError) else 1


def _lost(error: RayActorError) -> StoreLostError:
    reason = str(error).strip().splitlines()[0]
    return StoreLostError(f"a shard of the store died ({reason}); restore it from a snapshot")
