"""The driver's sign of life: `status.json` in the run's directory, written every few seconds.

It is there for runs on any storage, and nobody has to join the cluster to read it.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from ..datasets.masking import masked_text
from .run_dir import RunDir
from .run_status import RunStatus, advance, begin_again, from_json

LOG = logging.getLogger("labelmesh.status")
FILE = "status.json"
# Between two signs of life, on a file system and on an object store, where every write is billed.
_EVERY_S, _EVERY_REMOTE_S = 5.0, 20.0
# How long the end of a run waits for a write that hangs.
_CLOSE_S = 30.0


def read_status(run: RunDir) -> RunStatus | None:
    """What the run's driver wrote last; None if there is nothing that can be read."""
    try:
        return from_json(run.read_json(FILE)) if run.exists(FILE) else None
    except (ValueError, TypeError, AttributeError):
        return None


class Heartbeat:
    """Follows a run's events and writes its status; safe for several threads.

    Args:
        clock: Seconds since 1970.
        every_s: None: by the kind of storage.
    """

    def __init__(
        self,
        run: RunDir,
        status: RunStatus,
        *,
        clock: Callable[[], float] = time.time,
        every_s: float | None = None,
    ) -> None:
        remote = run.local_path is None
        self._run, self._clock = run, clock
        self._every_s = every_s or (_EVERY_REMOTE_S if remote else _EVERY_S)
        self._lock = threading.Lock()
        self._status = replace(
            status, heartbeat_s=self._every_s, host=socket.gethostname(), pid=os.getpid()
        )
        before = read_status(run)
        if before is not None:
            self._status = begin_again(self._status, before)
        self._has_warned = False
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Write from now on."""
        self._thread.start()

    def record(self, event: Mapping[str, Any]) -> None:
        """Take in one of the run's events; returns at once."""
        with self._lock:
            self._status = advance(self._status, event, self._clock())

    def close(self, state: str, reason: str | None = None) -> None:
        """Write how the run ended."""
        self._is_over.set()
        if self._thread.is_alive():
            self._thread.join(_CLOSE_S)
        said = None if reason is None else masked_text(reason)
        with self._lock:
            self._status = replace(self._status, state=state, reason=said)
        self.write()

    def write(self) -> None:
        """Write the status; a storage that refuses is not the run's end."""
        with self._lock:
            status = replace(self._status, updated_at=self._clock())
        try:
            self._run.write_json(FILE, status.as_json())
        except Exception as error:
            if not self._has_warned:
                self._has_warned = True
                LOG.warning(
                    "%s cannot be written (%s); the run goes on", FILE, masked_text(str(error))
                )

    def _beat(self) -> None:
        self.write()
        while not self._is_over.wait(self._every_s):
            self.write()
