"""A job's output, piece by piece, through lost connections."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

_PAUSE_S = 1.0


def follow_logs(
    client: Any,
    job_id: str,
    has_ended: Callable[[], bool],
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[str]:
    """What a job prints until it has ended.

    The connection is one web socket, which proxies and port forwards cut off now and then; the
    server then tells the output from its beginning, and what was told before is passed over.
    """
    told = 0
    while True:
        try:
            for piece in _new(_tail(client, job_id), told):
                told += len(piece)
                yield piece
        except (RuntimeError, OSError):
            if has_ended():
                return
        else:
            if has_ended():
                return
        pause(_PAUSE_S)


def _new(pieces: Iterator[str], told: int) -> Iterator[str]:
    """The pieces after the first `told` characters."""
    for piece in pieces:
        rest, told = piece[told:], max(0, told - len(piece))
        if rest:
            yield rest


def _tail(client: Any, job_id: str) -> Iterator[str]:
    """Ray's asynchronous generator, one step at a time."""
    pieces = client.tail_job_logs(job_id)

    async def step() -> str | None:
        return await anext(pieces, None)

    with asyncio.Runner() as runner:
        while (piece := runner.run(step())) is not None:
            yield piece
