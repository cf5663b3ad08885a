"""How many writes wait in each shard, asked now and then while a run goes on. No Ray."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

EVERY_S = 5.0

OnEvent = Callable[[dict[str, Any]], None]


@runtime_checkable
class Described(Protocol):
    """A store that tells of its shards."""

    def describe(self, timeout_s: float | None = None) -> Sequence[Any]: ...


@contextmanager
def queues_told(
    store: Described | None, on_event: OnEvent, *, every_s: float = EVERY_S
) -> Iterator[None]:
    """Within it `{"kind": "queues", "waiting_puts": {shard: count}}` is told, from a thread."""
    if store is None:
        yield
        return
    is_over = threading.Event()
    arguments = (store, on_event, is_over, every_s)
    thread = threading.Thread(target=_tell, args=arguments, name="queues", daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _tell(store: Described, on_event: OnEvent, is_over: threading.Event, every_s: float) -> None:
    while not is_over.wait(every_s):
        try:
            shards = store.describe(timeout_s=every_s)
        except Exception:
            continue  # a shard is restarted; what becomes of it is for others to say
        on_event({"kind": "queues", "waiting_puts": {s.rank: s.num_waiting for s in shards}})
