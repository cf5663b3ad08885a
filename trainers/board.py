"""Where workers and driver leave word for each other: an actor beside the driver.

Rank 0 leaves progress records, every rank says where it runs, and the driver says that the run
should pause. It lives with the driver: whatever happens to other machines, it is there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

# How often rank 0 asks whether the run should pause, in seconds.
_ASK_EVERY_S = 0.5


class _Board:
    """Ray actor."""

    def __init__(self) -> None:
        self._events: list[dict[str, Any]] = []
        self._nodes: dict[int, str] = {}
        self._pids: dict[int, int] = {}
        self._pause = False

    def add(self, event: dict[str, Any]) -> None:
        self._events.append(event)

    def join(self, rank: int, node_id: str, pid: int) -> None:
        self._nodes[rank], self._pids[rank] = node_id, pid

    def ask_pause(self) -> None:
        self._pause = True

    def should_pause(self) -> bool:
        return self._pause

    def take(self) -> tuple[list[dict[str, Any]], dict[int, str], dict[int, int]]:
        """Events since the last call, and each rank's node and process."""
        events, self._events = self._events, []
        return events, dict(self._nodes), dict(self._pids)


def open_board() -> Any:
    """A board on this machine."""
    here = ray.get_runtime_context().get_node_id()
    beside = NodeAffinitySchedulingStrategy(here, soft=True)
    return ray.remote(num_cpus=0)(_Board).options(scheduling_strategy=beside).remote()


def join(board: Any, rank: int, pid: int) -> None:
    """Say where this rank runs."""
    board.join.remote(rank, ray.get_runtime_context().get_node_id(), pid)


class PauseAsked:
    """Whether the driver wants a pause; asked in a thread, so that a training step never waits.

    Example:
        >>> asked = PauseAsked(board)  # doctest: +SKIP
        >>> asked()  # doctest: +SKIP
        False
    """

    def __init__(self, board: Any) -> None:
        self._asked = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(board,), daemon=True)
        self._thread.start()

    def __call__(self) -> bool:
        return self._asked

    def close(self) -> None:
        self._stop.set()
        self._thread.join()

    def _ask(self, board: Any) -> None:
        while not self._asked and not self._stop.wait(_ASK_EVERY_S):
            try:
                self._asked = ray.get(board.should_pause.remote())
            except RayError:
                return  # the driver has gone, and this process is about to


class Watcher:
    """Passes the board's events on to the driver and watches over the attempt, in a thread.

    Args:
        on_event: Gets rank 0's records and, when ranks have joined, where they run. What it raises
            is kept in `error`; it gets no more, and the run is asked to pause.
        why_pause: Asked now and then with the nodes that the attempt uses, none before a worker has
            joined; a reason to pause, or None.
        shard_nodes: Nodes that hold shards.
    """

    def __init__(
        self,
        board: Any,
        on_event: Callable[[dict[str, Any]], None],
        why_pause: Callable[[frozenset[str]], str | None],
        *,
        shard_nodes: frozenset[str] = frozenset(),
        every_s: float = 0.5,
    ) -> None:
        self._board, self._on_event, self._why_pause = board, on_event, why_pause
        self._every_s, self._shard_nodes = every_s, shard_nodes
        self._stop = threading.Event()
        self.paused_because: str | None = None
        self.checkpoint: str | None = None
        self.error: Exception | None = None
        self._num_joined = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Pass on what is left, and end."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            last = self._stop.wait(self._every_s)
            try:
                nodes = self._pass_on()
                reason = None if last or self.paused_because else self._reason(nodes)
                if reason is not None:
                    self.paused_because = reason
                    self._tell({"kind": "pausing", "reason": reason})
                    ray.get(self._board.ask_pause.remote())
            except RayError:
                return  # the cluster has gone; the attempt ends with its own error
            if last:
                return

    def _pass_on(self) -> frozenset[str]:
        events, nodes, pids = ray.get(self._board.take.remote())
        if len(nodes) > self._num_joined:
            self._num_joined = len(nodes)
            self._tell({"kind": "workers", "nodes": nodes, "pids": pids})
        for event in events:
            if event.get("kind") == "paused":
                self.checkpoint = event["checkpoint"]  # told by who judges the attempt
            else:
                self._tell(event)
        return frozenset(nodes.values()) | self._shard_nodes if nodes else frozenset()

    def _reason(self, nodes: frozenset[str]) -> str | None:
        return str(self.error) if self.error is not None else self._why_pause(nodes)

    def _tell(self, event: dict[str, Any]) -> None:
        if self.error is not None:
            return
        try:
            self._on_event(event)
        except Exception as error:
            self.error = error
