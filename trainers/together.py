"""What goes wrong with storage on one rank goes wrong on all: none waits for one that is gone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..graph_store.storage import StorageError
from .engine import Comm

_LENGTH = 1000


@contextmanager
def together(comm: Comm, doing: str) -> Iterator[None]:
    """Leave the block with the other ranks, or raise with them. Collective; one small exchange.

    Args:
        doing: Begins the message: what is not done now.

    Raises:
        StorageError: On all ranks, where the block failed on any; of the first such rank. What is
            not about storage is raised as it was, on the rank that it met.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    # Ray brings a shard's error in a wrapping of its own.
    cause = getattr(own, "cause", None) or own
    texts = torch.zeros(comm.world_size, _LENGTH, dtype=torch.int32)
    if cause is not None:
        message = (str(cause) or type(cause).__name__).encode()[:_LENGTH]
        texts[comm.rank, : len(message)] = torch.tensor(list(message), dtype=torch.int32)
    failed = [row for row in comm.all_sum(texts).tolist() if any(row)]
    if own is not None and not isinstance(cause, StorageError):
        raise own
    if failed:
        first = bytes(code for code in failed[0] if code).decode(errors="ignore")
        raise StorageError(f"{doing}; {first}") from own
