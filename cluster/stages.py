"""What a command is at: a spinner on a terminal, a line per stage elsewhere. On stderr."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.status import Status


class Stages:
    """Names what begins; a context manager that restores the terminal however it ends.

    Args:
        is_long: Whether lines are worth printing where there is no terminal.
        console: Where to write.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        *,
        is_long: bool = True,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._is_long = is_long
        self._clock = clock
        self._began = clock()
        self._status: Status | None = None

    def __enter__(self) -> Stages:
        if self._console.is_terminal:
            self._status = Status("", console=self._console)
            self._status.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._status is not None:
            self._status.stop()
            self._status = None

    def begin(self, stage: str) -> None:
        """Say what begins now."""
        line = f"{self._clock() - self._began:6.1f} s  {stage}"
        if self._status is not None:
            self._status.update(line)
        elif self._is_long:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
