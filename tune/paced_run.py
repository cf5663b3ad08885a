"""A point's run in a thread, which goes on only as far as somebody asks for its rounds. No Ray."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from ..trainers.outcome import RunPaused
from .trial import Report


class GivenUp(RunPaused):
    """Raised where a run reports a round and nobody wants another one of it."""


class PacedRun:
    """Runs `run` in a thread of its own; it waits after each report until the next is asked for.

    Example:
        >>> paced = PacedRun(lambda report: report(1, 0.5))
        >>> paced.next(), paced.next()
        ((1, 0.5), None)
    """

    def __init__(self, run: Callable[[Report], object]) -> None:
        self._run = run
        self._told: queue.SimpleQueue[tuple[int, float] | BaseException | None]
        self._told = queue.SimpleQueue()
        self._wanted = threading.Semaphore(0)
        self._is_given_up = False
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._is_begun = False

    def next(self) -> tuple[int, float] | None:
        """(rounds done, value) of the next report; None at the end of the run.

        Raises:
            BaseException: What broke the run.
        """
        if self._is_begun:
            self._wanted.release()
        else:
            self._is_begun = True
            self._thread.start()
        told = self._told.get()
        if isinstance(told, BaseException):
            raise told
        return told

    def give_up(self) -> None:
        """End the run where it reports next; returns when it has given back what it held."""
        self._is_given_up = True
        self._wanted.release()
        if self._is_begun:
            self._thread.join()

    def _report(self, round: int, score: float) -> None:
        if not self._is_given_up:
            self._told.put((round, score))
            self._wanted.acquire()
        if self._is_given_up:
            raise GivenUp(f"the sweep gave the point up after round {round}")

    def _work(self) -> None:
        try:
            self._run(self._report)
        except BaseException as error:
            self._told.put(error)
        else:
            self._told.put(None)
