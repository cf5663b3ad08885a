"""Records of a run as named numbers by step."""

from __future__ import annotations

import pytest
from labelmesh.trainers.scalars import Point, in_order, points_of

TRAIN = {"kind": "train", "phase": "mixed", "lr": 0.1, "samples_per_s": 50.0}
METRICS = [
    {**TRAIN, "phase": "warmup", "epoch": 0, "step": 6, "loss": 2.5},
    {**TRAIN, "epoch": 0, "step": 10, "loss": 1.5, "parts": {"graph": 0.5}},
    {"kind": "eval", "epoch": 1, "split": "val", "network": "ema", "accuracy": 0.75},
    {**TRAIN, "epoch": 1, "step": 14, "loss": 1.0},
    {"kind": "eval", "epoch": 2, "split": "test", "network": "ema", "accuracy": 0.8},
]
ROUNDS = [
    {"kind": "round", "round": r, "epoch": r, "searched": 50 * r, "exact": True, "coverage": 0.5}
    for r in range(3)
]
BASELINE = [{**TRAIN, "phase": "baseline", "epoch": 0, "step": 4, "loss": 3.0}]


def test_rounds_lie_before_the_training_of_their_epoch_and_after_the_warm_up() -> None:
    order = [(r["kind"], r.get("round", r.get("step"))) for r in in_order([], METRICS, ROUNDS)]
    assert order == [
        ("train", 6),
        ("round", 0),
        ("train", 10),
        ("eval", None),
        ("round", 1),
        ("train", 14),
        ("eval", None),
        ("round", 2),
    ]


def test_every_number_has_a_name_and_the_step_that_was_logged_before_it() -> None:
    points = set(points_of(in_order(BASELINE, METRICS, ROUNDS), num_nodes=200))
    assert {
        Point("baseline/train/loss", 4, 3.0),
        Point("train/loss", 6, 2.5),
        Point("train/loss_graph", 10, 0.5),
        Point("train/lr", 10, 0.1),
        Point("samples_per_second", 14, 50.0),
        Point("val/accuracy", 10, 0.75),
        Point("test/accuracy", 14, 0.8),
        Point("round/searched_share", 6, 0.0),
        Point("round/searched_share", 10, 0.25),
        Point("round/number", 14, 2.0),
        Point("round/exact", 14, 1.0),
    } <= points
    assert {p.tag.split("/")[0] for p in points} == {
        *("baseline", "train", "val", "test", "round", "samples_per_second"),
    }


@pytest.mark.parametrize("missing", ["loss", "lr", "samples_per_s"])
def test_what_a_record_does_not_say_is_left_out(missing: str) -> None:
    record = {key: value for key, value in METRICS[0].items() if key != missing}
    assert len(list(points_of([record], num_nodes=1))) == 2
