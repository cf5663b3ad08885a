"""Population-based training's decisions: who is replaced, by whom, with which values."""

from __future__ import annotations

import pytest
from labelmesh.tune.points import Mode
from labelmesh.tune.population import Population, next_population
from labelmesh.tune.space import SearchSpace, parse_space

SPACE = parse_space(
    {"train.lr": {"loguniform": [0.01, 1.0]}, "method.t": {"uniform": [0.0, 1.0], "step": 0.05}}
)
START = Population(2, tuple({"train.lr": 0.1 + i / 100, "method.t": 0.5} for i in range(6)))


def change(
    scores: dict[int, float], mode: Mode = "max", seed: int = 0, space: SearchSpace = SPACE
) -> Population:
    return next_population(
        START, scores, mode=mode, space=space, quantile=1 / 3, next_round=4, seed=seed
    )


def test_the_worst_go_on_from_the_best() -> None:
    after = change({0: 0.5, 1: 0.9, 2: 0.1, 3: 0.8, 4: 0.2, 5: 0.6})
    assert (after.round, after.pending) == (4, 2)
    assert [c.member for c in after.changes] == [2, 4]
    assert {c.donor for c in after.changes} <= {1, 3}
    assert all(after.params[m] == START.params[m] for m in (0, 1, 3, 5))


def test_less_is_better_where_the_mode_says_so() -> None:
    after = change({0: 0.5, 1: 0.9, 2: 0.1, 3: 0.8, 4: 0.2, 5: 0.6}, "min")
    assert [c.member for c in after.changes] == [1, 3]
    assert {c.donor for c in after.changes} <= {2, 4}


def test_members_that_failed_are_replaced_besides() -> None:
    after = change({0: 0.5, 1: 0.9, 2: float("nan"), 3: 0.8})
    assert [c.member for c in after.changes] == [0, 2, 3, 4, 5] or [
        c.member for c in after.changes
    ] == [0, 2, 4, 5]
    assert change({3: 0.8}).changes[0].donor == 3
    with pytest.raises(ValueError, match="every member of the population failed before round 2"):
        change({})


def test_values_are_perturbed_or_drawn_anew_within_their_ranges() -> None:
    perturbed = fresh = 0
    for seed in range(200):
        for c in change({i: float(i) for i in range(6)}, seed=seed).changes:
            before, after = START.params[c.donor]["train.lr"], c.params["train.lr"]
            assert 0.01 <= after <= 1.0
            steps = c.params["method.t"] / 0.05
            assert steps == pytest.approx(round(steps), abs=1e-9)
            near = {before * 0.8, before * 1.2}
            perturbed += after in near
            fresh += after not in near
    assert fresh / (fresh + perturbed) == pytest.approx(0.25, abs=0.06)


def test_decisions_repeat_and_survive_json() -> None:
    scores = {i: float(i) for i in range(6)}
    after = change(scores)
    assert change(scores) == after
    assert change(scores, seed=1) != after
    assert Population.from_json(after.to_json()) == after
