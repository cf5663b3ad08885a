"""From a run's events to its status, by table."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from labelmesh.trainers.run_status import RunStatus, advance, begin_again, from_json

NEW = RunStatus(name="digits", method="dag", started_at=100.0, updated_at=100.0)
START = {"kind": "start", "epochs": 4, "num_steps": 410, "num_nodes": 200, "num_labeled": 40}
TRAIN = {
    "kind": "train",
    "phase": "mixed",
    "epoch": 0,
    "step": 20,
    "phase_step": 10,
    "phase_steps": 100,
    "loss": 0.5,
    "samples_per_s": 900.0,
}
ROUND = {"kind": "round", "round": 1, "epoch": 1, "searched": 50, "recall": 1.0, "coverage": 0.9}


def after(*events: dict[str, Any], status: RunStatus = NEW, every_s: float = 1.0) -> RunStatus:
    for i, event in enumerate(events):
        status = advance(status, event, 100.0 + every_s * i)
    return status


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], {"state": "starting"}),
        ([{**TRAIN, "baseline": True}], {"state": "baseline", "loss": 0.5, "step": None}),
        ([START], {"state": "training", "epochs": 4, "num_steps": 410, "step": None}),
        ([START, {**TRAIN, "phase": "warmup"}], {"state": "warm-up", "step": 20}),
        ([START, TRAIN], {"state": "training", "phase": "mixed", "phase_step": 10}),
        ([START, {"kind": "stage", "round": 1, "stage": "search"}], {"state": "round", "round": 1}),
        ([START, ROUND], {"state": "training", "stage": None, "searched_share": 0.25}),
        ([START, {**ROUND, "epoch": 4}], {"state": "finishing", "coverage": 0.9}),
        (
            [START, TRAIN, {"kind": "eval", "split": "val", "epoch": 1, "accuracy": 0.75}],
            {"state": "training", "val_accuracy": 0.75},
        ),
        (
            [START, {"kind": "eval", "split": "test", "epoch": 4, "accuracy": 0.75}],
            {"state": "finishing", "test_accuracy": 0.75},
        ),
        (
            [START, {"kind": "checkpoint", "name": "epoch-0001", "seconds": 2.0}],
            {"state": "training", "checkpoint": "epoch-0001", "checkpoint_at": 101.0},
        ),
        (
            [{"kind": "attempt", "number": 1, "workers": 4, "resumed_from": None}],
            {"state": "starting", "restarts": 0, "num_workers": 4},
        ),
        (
            [
                {"kind": "attempt", "number": 1, "workers": 4, "resumed_from": None},
                {"kind": "lost", "reason": "a worker died", "failures": 1},
            ],
            {"state": "restarting", "losses": 1, "reason": "a worker died"},
        ),
        (
            [
                {"kind": "lost", "reason": "a worker died", "failures": 1},
                {"kind": "waiting", "reason": "needs 4 CPUs, has 2"},
                {"kind": "attempt", "number": 2, "workers": 2, "resumed_from": "epoch-0001"},
            ],
            {"state": "restarting", "restarts": 1, "losses": 1, "reason": None, "num_workers": 2},
        ),
        (
            [{"kind": "waiting", "reason": "needs 4 CPUs, has 2"}],
            {"state": "waiting", "reason": "needs 4 CPUs, has 2"},
        ),
        (
            [{"kind": "waiting", "trainers": 2, "shards": 1}],
            {"state": "waiting", "reason": "no room for 2 trainers and 1 shards"},
        ),
        ([{"kind": "pausing", "reason": "a machine leaves"}], {"state": "pausing"}),
        (
            [{"kind": "workers", "nodes": {0: "10.0.0.1", 1: "10.0.0.2"}, "pids": {0: 1, 1: 2}}],
            {"trainers": {"0": "10.0.0.1", "1": "10.0.0.2"}},
        ),
        (
            [
                {"kind": "shards", "shards": {0: {"node": "10.0.0.1", "pid": 7}}},
                {"kind": "queues", "waiting_puts": {0: 3}},
            ],
            {"num_shards": 1, "shards": {"0": "10.0.0.1"}, "waiting_puts": {"0": 3}},
        ),
        ([{"kind": "weather", "sun": True}, {}], {"state": "starting"}),
    ],
)
def test_events_lead_to_states(events: list[dict[str, Any]], expected: dict[str, Any]) -> None:
    status = after(*events)
    assert {key: getattr(status, key) for key in expected} == expected
    assert from_json(json.loads(json.dumps(status.as_json()))) == status


def test_time_left_follows_the_mean_speed_and_begins_anew_after_a_restart() -> None:
    status = after(START, TRAIN, {**TRAIN, "step": 120}, every_s=10.0)
    assert status.progress == pytest.approx(120 / 410)
    assert status.seconds_left(120.0) == pytest.approx(290 * 10.0 / 100)
    assert advance(status, {"kind": "waiting", "reason": "?"}, 120.0).seconds_left(120.0) is None
    again = advance(advance(status, START, 500.0), {**TRAIN, "step": 40}, 510.0)
    assert again.seconds_left(510.0) is None
    assert advance(again, {**TRAIN, "step": 60}, 520.0).seconds_left(520.0) == 350 * 0.5


def test_steps_that_come_again_do_not_make_the_pace_negative() -> None:
    status = after(START, {**TRAIN, "step": 200}, {**TRAIN, "step": 100}, {**TRAIN, "step": 120})
    assert status.seconds_left(103.0) == pytest.approx(290 / 20)


def test_a_driver_that_should_be_at_work_is_missed_after_a_minute() -> None:
    status = after(START, TRAIN)
    assert status.silent_s(160.0) is None
    assert status.silent_s(280.0) == 180.0
    slow = replace(status, heartbeat_s=20.0)
    assert (slow.silent_s(215.0), slow.silent_s(225.0)) == (None, 125.0)
    ended = advance(status, {"kind": "failed", "reason": "disk full"}, 102.0)
    assert (ended.is_over, ended.silent_s(1e9), ended.reason) == (True, None, "disk full")


def test_another_driver_counts_as_a_restart() -> None:
    before = replace(NEW, restarts=1, losses=2, checkpoint="epoch-0002", checkpoint_at=90.0)
    again = begin_again(replace(NEW, started_at=500.0), before)
    assert (again.started_at, again.restarts, again.losses) == (100.0, 2, 2)
    assert again.checkpoint == "epoch-0002"


def test_keys_of_another_version_are_left_out() -> None:
    assert from_json({**NEW.as_json(), "weather": "fine"}) == NEW
