"""How many writes wait in each shard, asked now and then while a run goes on. No Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

EVERY_S = 5.0


class Described(Protocol):
    """A store that tells of its shards."""

    def describe(self, timeout_s: float | None = None) -> Sequence[Any]: ...


class QueueWatch:
    """Tells `{"kind": "queues", "waiting_puts": {shard: count}}` until it is closed; a thread."""

    def __init__(
        self,
        store: Described,
        on_event: Callable[[dict[str, Any]], None],
        *,
        every_s: float = EVERY_S,
    ) -> None:
        self._store, self._on_event, self._every_s = store, on_event, every_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="queues", daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(self._every_s):
            try:
                shards = self._store.describe(timeout_s=self._every_s)
            except Exception:
                continue  # a shard that is restarted; others say what has become of it
            waiting = {shard.rank: shard.num_waiting for shard in shards}
            self._on_event({"kind": "queues", "waiting_puts": waiting})
