"""TensorBoard's event files, read back."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from labelmesh.trainers.run_dir import RunDir
from labelmesh.trainers.scalars import Point
from labelmesh.trainers.tensorboard_sink import FOLDER, TensorBoardSink, read_points, written


@pytest.fixture(params=["local", "memory"])
def run(request: pytest.FixtureRequest, tmp_path: Path) -> RunDir:
    if request.param == "local":
        return RunDir(str(tmp_path / "run"))
    return RunDir(f"memory://{tmp_path.name}/run")


def curve(*steps: int) -> list[Point]:
    return [Point("train/loss", step, 1 / step) for step in steps]


def read(run: RunDir, tmp_path: Path) -> dict[tuple[str, int, str], float]:
    """All points of the run's files; a point that is there twice fails."""
    found = []
    for name in run.names(FOLDER):
        copy = tmp_path / name
        copy.write_bytes(run.read_bytes(f"{FOLDER}/{name}"))
        found += list(read_points(copy))
    assert len(found) == len(dict(found))
    return dict(found)


def times(points: list[Point], *at: float) -> dict[tuple[str, int, str], float]:
    return {written(point): when for point, when in zip(points, at)}


def die(sink: TensorBoardSink) -> None:
    """What the end of a process does: files are closed, and nothing else."""
    assert sink._writer is not None
    sink._writer.close()
    if sink._scratch is not None:
        sink._scratch.cleanup()


def test_curves_grow_and_a_resumed_run_drops_what_it_has_not_done(
    run: RunDir, tmp_path: Path
) -> None:
    now = [100.0]
    first = TensorBoardSink(run, wall_clock=lambda: now[0], upload_every_s=0.0)
    first.mirror(curve(10, 20))
    now[0] = 200.0
    first.mirror(curve(10, 20, 30))
    expected = times(curve(10, 20, 30), 100.0, 100.0, 200.0)
    assert read(run, tmp_path) == expected
    die(first)  # the next driver goes on from step 20
    now[0] = 300.0
    second = TensorBoardSink(run, wall_clock=lambda: now[0], upload_every_s=0.0)
    second.mirror(curve(10, 20))
    assert read(run, tmp_path) == times(curve(10, 20), 100.0, 100.0)
    second.mirror(curve(10, 20, 30))
    second.close("finished")
    assert read(run, tmp_path) == times(curve(10, 20, 30), 100.0, 100.0, 300.0)
    assert len(run.names(FOLDER)) == 1


def test_a_restart_under_the_same_driver_drops_them_too(run: RunDir, tmp_path: Path) -> None:
    sink = TensorBoardSink(run, wall_clock=lambda: 1.0, upload_every_s=0.0)
    sink.mirror(curve(10, 20, 30))
    sink.mirror(curve(10, 40))
    sink.close("finished")
    assert read(run, tmp_path).keys() == times(curve(10, 40), 1.0, 1.0).keys()


def test_object_stores_are_written_now_and_then_and_at_the_end(tmp_path: Path) -> None:
    run, now = RunDir(f"memory://{tmp_path.name}/run"), [0.0]
    sink = TensorBoardSink(run, wall_clock=lambda: now[0], upload_every_s=30.0)
    sizes = []
    for at in (0.0, 10.0, 31.0):
        now[0] = at
        sink.mirror(curve(*range(1, 2 + int(at))))
        sizes.append(len(read(run, tmp_path)))
    now[0] = 32.0
    sink.mirror(curve(*range(1, 34)))
    sink.close("finished")
    assert [*sizes, len(read(run, tmp_path))] == [1, 1, 32, 33]


def test_numbers_that_are_none_are_kept_and_known_again(run: RunDir, tmp_path: Path) -> None:
    points = [Point("a", 1, math.nan), Point("b", 1, math.inf), Point("c", 1, 1e300)]
    sink = TensorBoardSink(run, wall_clock=lambda: 1.0, upload_every_s=0.0)
    sink.mirror(points)
    sink.mirror([Point("a", 1, math.nan), *points[1:], Point("d", 2, 0.1)])
    sink.close("failed")
    assert [key[2] for key in read(run, tmp_path)] == [
        "nan",
        "inf",
        "inf",
        repr(0.10000000149011612),
    ]


def test_an_event_that_was_cut_off_ends_the_file(tmp_path: Path) -> None:
    run = RunDir(str(tmp_path / "run"))
    sink = TensorBoardSink(run)
    sink.mirror(curve(10, 20))
    die(sink)
    (path,) = (tmp_path / "run" / FOLDER).iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    assert [key for key, _ in read_points(path)] == [written(p) for p in curve(10)]
