"""Progress: what is printed, how often, and what the live table shows."""

from __future__ import annotations

import io
from typing import Any

import pytest
from labelmesh.cluster.progress import Progress
from rich.console import Console


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def start(epochs: int = 40, num_steps: int = 400) -> dict[str, Any]:
    return {
        "kind": "start",
        "epochs": epochs,
        "num_steps": num_steps,
        "num_nodes": 1437,
        "num_labeled": 40,
    }


def train(epoch: int, step: int) -> dict[str, Any]:
    return {"kind": "train", "epoch": epoch, "step": step, "loss": 0.25, "samples_per_s": 1240.4}


def piped(clock: Clock | None = None) -> tuple[Progress, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, width=200)
    return Progress("digits", console=console, clock=clock or Clock()), out


def test_lines_say_where_the_run_is_counted_from_one() -> None:
    clock = Clock()
    progress, out = piped(clock)
    with progress:
        progress.update(start())
        clock.now += 11
        progress.update(train(epoch=0, step=10))
        clock.now += 20
        progress.update(train(epoch=2, step=30))
    assert out.getvalue().splitlines() == [
        "digits: 1,437 nodes, 40 labeled, 40 epochs, 400 steps",
        "epoch 1/40  step 10/400  loss 0.2500  1,240 samples/s",
        "epoch 3/40  step 30/400  loss 0.2500  1,240 samples/s  6:10 left",
    ]


def test_steps_are_printed_at_most_every_ten_seconds_and_rounds_always() -> None:
    clock = Clock()
    progress, out = piped(clock)
    for step in range(1, 100):
        clock.now += 1.0
        progress.update(train(0, step))
    assert len(out.getvalue().splitlines()) == 9
    for number in range(3):
        progress.update({"kind": "round", "epoch": number, "round": number, "coverage": 0.5})
    assert out.getvalue().splitlines()[-1] == "round 2  coverage 50.0 %"


def test_time_left_is_proportional_to_the_steps_left() -> None:
    clock = Clock()
    progress, _ = piped(clock)
    progress.update(start(num_steps=110))
    assert progress.seconds_left is None
    progress.update(train(0, 10))
    clock.now += 30.0
    progress.update(train(0, 60))
    assert progress.seconds_left == pytest.approx(30.0)


def test_baseline_does_not_move_the_run_forward() -> None:
    progress, out = piped()
    progress.update(
        {"kind": "eval", "epoch": 0, "split": "test", "accuracy": 0.5, "baseline": True}
    )
    progress.update(train(0, 7) | {"baseline": True})
    progress.update(start())
    assert out.getvalue().splitlines()[0] == "baseline  test accuracy 50.0 %"
    assert progress.seconds_left is None


def rendered(progress: Progress) -> str:
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as capture:
        console.print(progress.render())
    return capture.get()


def test_live_table_has_a_row_per_epoch_and_sets_the_end_apart() -> None:
    progress, _ = piped()
    progress.update(start(epochs=2))
    for epoch in range(2):
        progress.update({"kind": "round", "round": epoch, "epoch": epoch, "coverage": 0.9})
        progress.update(train(epoch, 200 * (epoch + 1)))
        progress.update({"kind": "eval", "epoch": epoch + 1, "split": "val", "accuracy": 0.8})
    progress.update({"kind": "round", "round": 2, "epoch": 2, "coverage": 1.0})
    progress.update({"kind": "eval", "epoch": 2, "split": "test", "accuracy": 0.95})
    rows = [line.split() for line in rendered(progress).splitlines()[2:]]
    assert rows == [
        ["1", "0", "0.2500", "90.0", "%", "80.0", "%"],
        ["2", "1", "0.2500", "90.0", "%", "80.0", "%"],
        ["end", "2", "100.0", "%", "95.0", "%"],
    ]


def test_live_table_keeps_the_last_ten_epochs() -> None:
    progress, _ = piped()
    for epoch in range(30):
        progress.update(train(epoch, epoch + 1))
    rows = rendered(progress).splitlines()[2:]
    assert [row.split()[0] for row in rows] == [str(e) for e in range(21, 31)]


def test_terminal_gets_a_live_table_and_no_lines() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, force_terminal=True, color_system=None)
    with Progress("digits", console=console) as progress:
        progress.update(start())
        progress.update(train(0, 10))
    assert "epoch 1/40  step 10/400" in out.getvalue()
    assert "1,437 nodes" not in out.getvalue()


def test_unknown_events_are_ignored() -> None:
    progress, out = piped()
    progress.update({"kind": "weather", "sun": 1})
    progress.update({})
    assert out.getvalue() == ""


def test_a_run_that_waits_for_room_says_so() -> None:
    progress, out = piped()
    progress.update({"kind": "waiting", "trainers": 2, "shards": 4})
    assert out.getvalue() == (
        "digits: waiting until the cluster has room for 2 trainers and 4 shards\n"
    )


def test_what_becomes_of_a_run_is_told_with_the_reason() -> None:
    progress, out = piped()
    for kind in ("waiting", "pausing", "lost", "skipped"):
        progress.update({"kind": kind, "reason": "node 7 leaves"})
    assert out.getvalue().splitlines() == [
        "digits: waiting until the cluster has room: node 7 leaves",
        "digits: pausing: node 7 leaves",
        "digits: going on from the last checkpoint: node 7 leaves",
        "digits: a damaged checkpoint is passed over: node 7 leaves",
    ]
