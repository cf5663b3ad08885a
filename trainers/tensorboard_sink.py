"""TensorBoard event files in the run's folder `tensorboard/`; the only importer of tensorboardX.

On a file system the file grows as the run goes on. Object stores cannot append, so there the file
is kept on the driver's disk and copied as a whole, at most every `UPLOAD_EVERY_S`: it is a few
bytes per number. Point `tensorboard --logdir` at the run, or at the folder of many runs.
"""

from __future__ import annotations

import ctypes
import struct
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from .run_dir import RunDir
from .scalars import Point

FOLDER = "tensorboard"
UPLOAD_EVERY_S = 30.0

Written = tuple[str, int, str]
_NEW: Mapping[Written, float] = {}


class TensorBoardSink:
    """Mirrors points into one event file per driver.

    Args:
        wall_clock: Seconds since 1970, the time of new points.
    """

    def __init__(
        self,
        run: RunDir,
        *,
        wall_clock: Callable[[], float] = time.time,
        upload_every_s: float = UPLOAD_EVERY_S,
    ) -> None:
        self._run, self._now, self._upload_every_s = run, wall_clock, upload_every_s
        self._scratch = tempfile.TemporaryDirectory() if run.local_path is None else None
        if self._scratch is not None:
            self._folder = Path(self._scratch.name)
            run.download(FOLDER, self._folder)
        else:
            assert run.local_path is not None
            self._folder = run.local_path / FOLDER
            self._folder.mkdir(parents=True, exist_ok=True)
        self._times: dict[Written, float] = {}
        for path in self._files():
            self._times.update(read_points(path))
        self._writer: EventsWriter | None = None
        self._uploaded_at = -float("inf")

    def mirror(self, points: Sequence[Point]) -> None:
        """See `Sink.mirror`. What the run has dropped goes, too: the file is written anew."""
        kept = {written(point): point for point in points}
        if self._writer is None or not self._times.keys() <= kept.keys():
            self._begin_anew(kept)
        else:
            self._add({key: kept[key] for key in kept if key not in self._times})
        if self._scratch is not None and self._now() >= self._uploaded_at + self._upload_every_s:
            self._upload()

    def close(self, state: str) -> None:
        """See `Sink.close`."""
        if self._writer is not None:
            self._writer.close()
        if self._scratch is not None:
            self._upload()
            self._scratch.cleanup()

    def _begin_anew(self, points: Mapping[Written, Point]) -> None:
        """One file of these points, each with the time at which it was first written."""
        if self._writer is not None:
            self._writer.close()
        old, times = self._files(), self._times
        # The suffix keeps files of one second apart.
        self._writer = EventsWriter(str(self._folder / "events"), f".{time.time_ns()}")
        self._times = {}
        self._add(points, times)
        for path in old:
            path.unlink()
        self._uploaded_at = -float("inf")

    def _add(self, points: Mapping[Written, Point], times: Mapping[Written, float] = _NEW) -> None:
        assert self._writer is not None
        for key, point in points.items():
            at = times.get(key, self._now())
            value = Summary.Value(tag=point.tag, simple_value=point.value)
            event = Event(wall_time=at, step=point.step, summary=Summary(value=[value]))
            self._writer.write_event(event)
            self._times[key] = at
        self._writer.flush()

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("events.out.tfevents.*"))

    def _upload(self) -> None:
        self._run.upload(self._folder, FOLDER)
        for stale in set(self._run.names(FOLDER)) - {path.name for path in self._files()}:
            self._run.remove(f"{FOLDER}/{stale}")
        self._uploaded_at = self._now()


def written(point: Point) -> Written:
    """What tells a point from others in a file, which keeps 32 bits of a value (NaN is one)."""
    return point.tag, point.step, repr(ctypes.c_float(point.value).value)


def read_points(path: Path) -> Iterator[tuple[Written, float]]:
    """Points of an event file and when they were written; ends at an event that was cut off.

    The format is TensorFlow's: length, its checksum, message, its checksum.
    """
    data, at = path.read_bytes(), 0
    while at + 12 <= len(data):
        (size,) = struct.unpack_from("<Q", data, at)
        if at + 16 + size > len(data):
            return
        event = Event.FromString(data[at + 12 : at + 12 + size])
        for value in event.summary.value:
            point = Point(value.tag, event.step, value.simple_value)
            yield written(point), event.wall_time
        at += 16 + size
