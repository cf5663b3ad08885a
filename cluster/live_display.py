"""A display on stderr: a table that is kept up to date on a terminal, plain lines elsewhere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.live import Live

Display = TypeVar("Display", bound="LiveDisplay")


class LiveDisplay(ABC):
    """A context manager that restores the terminal however it ends.

    Args:
        console: Where to write; stderr unless told, as stdout belongs to results.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._live: Live | None = None

    def __enter__(self: Display) -> Display:
        if self._console.is_terminal:
            self._live = Live(self.render(), console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.update(self.render(), refresh=True)
            self._live.stop()
            self._live = None

    @abstractmethod
    def render(self) -> RenderableType:
        """What a terminal shows now."""

    @property
    def is_live(self) -> bool:
        """Whether there is a terminal that shows the table."""
        return self._live is not None

    def redraw(self) -> None:
        """Show what `render` gives now, where there is a terminal."""
        if self._live is not None:
            self._live.update(self.render())

    def print_line(self, text: str) -> None:
        """One line, above the table where there is one; as it is, markup and all."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=not self.is_live)
