"""The log of one shard: what happened to it, written before it has an effect.

A log is a chain of segments. A pointer names them, and how far those before the last are valid; it
is replaced as a whole. Who opens a log begins a segment of its own, so what a process that was
given up may still write is not read by anybody. When the records have grown past twice the
state that they describe, a record of the whole state begins a new chain.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress

from .journal_files import SEGMENT, JournalError, open_folder
from .journal_frames import Record, encode
from .places import check_name

FORMAT = 1
# A log below this many bytes is not worth writing anew.
SMALLEST = 16 << 20
# How many times as large as the state what comes after a record of it may grow.
GROWTH = 2.0

_ADVICE = "restore the store from a snapshot"

_logger = logging.getLogger(__name__)


class Journal:
    """Appends records, and gives them back after the process has died. For one thread at a time.

    Use: `replay`, then `begin`, then the others.

    Args:
        uri: A folder for this shard alone, at any fsspec URI.
        lineage: The store's name; the log of another store is refused.

    Raises:
        JournalError: The log is another store's, or of another format.

    Attributes:
        version: Records since the store was made.
        num_bytes: Size of the log.
    """

    def __init__(self, uri: str, lineage: str) -> None:
        self._uri, self._lineage = uri, lineage
        self._folder = open_folder(uri)
        self._segment, self._place = "", 0  # the last one, and its end
        self.version = 0
        self.num_bytes = 0
        self._limit = 0.0
        self._fault = ""
        # Segments and their ends; -1: as far as it is whole.
        self._chain: list[tuple[str, int]] = self._read_pointer()

    def replay(self) -> Iterator[Record]:
        """All records that were acknowledged, in order.

        Raises:
            JournalError: The log is damaged.
        """
        for index, (segment, end) in enumerate(self._chain):
            read = 0
            try:
                for record, place, size in self._folder.read(segment, end if end >= 0 else None):
                    self.version = record.fields.get("version", self.version + 1)
                    self.num_bytes += size
                    read = place
                    yield record
            except (OSError, ValueError) as error:
                raise JournalError(f"{self._uri}/{segment}: {error}; {_ADVICE}") from error
            if end >= 0 and read != end:
                raise JournalError(
                    f"{self._uri}/{segment} ends at {read:,} instead of {end:,}; {_ADVICE}"
                )
            self._chain[index] = segment, read

    def begin(self) -> None:
        """Log into a segment of its own from now on.

        Raises:
            JournalError: It cannot be made.
        """
        self._switch([part for part in self._chain if part[1]], None)

    def append(self, record: Record, *, sync: bool = False) -> None:
        """Write a record.

        Args:
            sync: Make it, and all before it, outlast the machine.

        Raises:
            JournalError: It could not be written, and is not there; or another process has taken
                over the log.
        """
        self._check_current()
        place = self._place
        frame = encode(record, place)
        size = sum(buffer.nbytes for buffer in frame)
        try:
            self._place = self._folder.append(self._segment, place, frame)
            if sync:
                self._folder.sync(self._segment)
        except BaseException as error:
            self._take_back(place)
            if isinstance(error, OSError):
                raise JournalError(
                    f"{self._uri}/{self._segment}: a record of {size:,} bytes could not be "
                    f"written ({error}); make room there, then repeat the call"
                ) from error
            raise
        self.version += 1
        self.num_bytes += size

    def sync(self) -> None:
        """Make all records outlast the machine.

        Raises:
            JournalError: That failed, or another process has taken over the log.
        """
        self._check_current()
        try:
            self._folder.sync(self._segment)
        except OSError as error:
            raise JournalError(f"{self._uri}/{self._segment} is not on disk ({error})") from error

    def restart(self, whole: Record) -> None:
        """Let the log begin with a record of the whole state; what was before is deleted.

        Raises:
            JournalError: That failed; the log is as it was.
        """
        self._check_current()
        self._switch(
            [], Record(whole.kind, {**whole.fields, "version": self.version + 1}, whole.tensors)
        )

    def compact(self, whole: Callable[[], Record]) -> None:
        """`restart` if the log has grown too long; where that fails it goes on growing."""
        if self.num_bytes <= max(SMALLEST, self._limit):
            return
        record = whole()
        size = sum(tensor.nbytes for tensor in record.tensors.values())
        self._limit = (1 + GROWTH) * size
        if self.num_bytes <= self._limit:
            return
        try:
            self.restart(record)
        except JournalError as error:
            self._limit = 2.0 * self.num_bytes
            _logger.warning("the log is not shortened: %s", error)

    def _switch(self, chain: list[tuple[str, int]], first: Record | None) -> None:
        """Begin a segment, with a first record, that follows on a chain; then the others go."""
        numbers = [int(name[:6]) for name, _ in [*self._chain, (self._segment or "0", 0)]]
        segment = f"{max(numbers) + 1:06d}-{uuid.uuid4().hex[:8]}"
        frame = [] if first is None else encode(first, 0)
        size, place = sum(buffer.nbytes for buffer in frame), 0
        names = [name for name, _ in chain]
        body = {"format": FORMAT, "lineage": self._lineage, "segments": [*chain, (segment, -1)]}
        try:
            self._folder.create(segment)
            if frame:
                place = self._folder.append(segment, 0, frame)
                self._folder.sync(segment)
            self._folder.write_pointer(json.dumps(body).encode())
        except OSError as error:
            with suppress(OSError):
                self._folder.keep_only([*(name for name, _ in self._chain), self._segment])
            raise JournalError(
                f"{self._uri}/{segment}: {size:,} bytes could not be written ({error})"
            ) from error
        self._chain, self._segment, self._place, self._fault = chain, segment, place, ""
        if first is not None:
            self.version, self.num_bytes = first.fields["version"], size
        with suppress(OSError):
            self._folder.keep_only([*names, segment])

    def _check_current(self) -> None:
        if self._fault:
            raise JournalError(self._fault)
        if not self._folder.is_current():
            raise JournalError(f"{self._uri}: another process has taken over this log")

    def _take_back(self, place: int) -> None:
        """Drop what an error has left of a record."""
        self._place = place
        try:
            self._folder.cut(self._segment, place)
        except OSError as error:
            self._fault = f"{self._uri}/{self._segment} is broken at {place:,} ({error}); {_ADVICE}"

    def _read_pointer(self) -> list[tuple[str, int]]:
        try:
            found = self._folder.read_pointer()
            body = None if found is None else json.loads(found)
        except (OSError, ValueError) as error:
            raise JournalError(f"{self._uri}: {error}; {_ADVICE}") from error
        if body is None:
            return []
        if body["format"] != FORMAT:
            raise JournalError(
                f"{self._uri}: the log has format {body['format']}, this version reads {FORMAT}"
            )
        if body["lineage"] != self._lineage:
            raise JournalError(
                f"{self._uri}: this is the log of {body['lineage']}, not of {self._lineage}"
            )
        try:
            where = f"{self._uri}: the pointer"
            return [(check_name(name, SEGMENT, where), int(end)) for name, end in body["segments"]]
        except (TypeError, ValueError) as error:
            raise JournalError(f"{self._uri}: {error}; {_ADVICE}") from None
