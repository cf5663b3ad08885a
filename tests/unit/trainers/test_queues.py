"""Queues of shards are told while a run goes on, whatever the shards do."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from labelmesh.trainers.queues import queues_told


class FakeStore:
    """Its second shard is away at the first question."""

    def __init__(self) -> None:
        self.asked = 0

    def describe(self, timeout_s: float | None = None) -> list[Any]:
        self.asked += 1
        if self.asked == 1:
            raise TimeoutError("shard 1 is restarted")
        return [SimpleNamespace(rank=0, num_waiting=2), SimpleNamespace(rank=1, num_waiting=0)]


def test_queues_are_told_until_the_end_also_after_a_shard_was_away() -> None:
    events: list[dict[str, Any]] = []
    told, store = threading.Event(), FakeStore()

    def on_event(event: dict[str, Any]) -> None:
        events.append(event)
        told.set()

    with queues_told(store, on_event, every_s=0.001):
        assert told.wait(30)
    assert events[0] == {"kind": "queues", "waiting_puts": {0: 2, 1: 0}}
    assert not any(thread.name == "queues" for thread in threading.enumerate())


def test_without_a_store_nothing_is_asked() -> None:
    with queues_told(None, lambda event: None):
        assert not any(thread.name == "queues" for thread in threading.enumerate())
