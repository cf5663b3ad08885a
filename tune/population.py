"""Population-based training: schedules of hyperparameters instead of constants.

Jaderberg et al., "Population Based Training of Neural Networks", 2017: members train side by side;
every so many rounds the worst go on from the best ones' weights (exploit) with values that are
perturbed, or drawn anew (explore). Here all members reach the same round before anybody is
replaced, and every draw is a function of seed, round and member: the outcome depends neither on how
many run at a time nor on who was killed meanwhile. Pure; `generations.py` moves the runs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .points import Mode
from .space import Reals, SearchSpace

_FACTORS = (0.8, 1.2)
_FRESH_SHARE = 0.25
"""Of the values that are drawn anew instead of perturbed; both as in the paper's experiments."""


@dataclass(frozen=True)
class Change:
    """A member that went on from another one's weights after `round` rounds."""

    round: int
    member: int
    donor: int
    params: Mapping[str, Any]


@dataclass(frozen=True)
class Population:
    """Where a population stands.

    Attributes:
        round: How far every member is to get before the next change.
        params: Present values of each member.
        changes: Everything that was changed, in order: the schedules.
        pending: The last of them still have to be carried out, so many.
    """

    round: int
    params: tuple[Mapping[str, Any], ...]
    changes: tuple[Change, ...] = ()
    pending: int = 0

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Population:
        changes = tuple(Change(**change) for change in raw["changes"])
        return cls(raw["round"], tuple(raw["params"]), changes, raw["pending"])


def next_population(
    population: Population,
    scores: Mapping[int, float],
    *,
    mode: Mode,
    space: SearchSpace,
    quantile: float,
    next_round: int,
    seed: int,
) -> Population:
    """Who goes on from whose weights, and with which values.

    Args:
        scores: After `population.round` rounds; a member without a finite one has failed and is
            replaced.

    Raises:
        ValueError: Every member has failed.
    """
    sign = 1.0 if mode == "max" else -1.0
    alive = {m: sign * s for m, s in scores.items() if math.isfinite(s)}
    if not alive:
        raise ValueError(f"every member of the population failed before round {population.round}")
    ranked = sorted(alive, key=lambda member: (-alive[member], member))
    count = min(math.ceil(len(ranked) * quantile), len(ranked) // 2)
    failed = [m for m in range(len(population.params)) if m not in alive]
    worst = ranked[len(ranked) - count :]
    donors = ranked[: max(count, 1)]
    params, changes = list(population.params), []
    for member in sorted([*failed, *worst]):
        rng = np.random.default_rng([seed, population.round, member])
        donor = donors[int(rng.integers(len(donors)))]
        params[member] = explore(space, population.params[donor], rng)
        changes.append(Change(population.round, member, donor, params[member]))
    return Population(
        next_round, tuple(params), (*population.changes, *changes), pending=len(changes)
    )


def explore(
    space: SearchSpace, params: Mapping[str, Any], rng: np.random.Generator
) -> dict[str, Any]:
    """Values near those of a donor, within their ranges."""
    out: dict[str, Any] = {}
    for key, dimension in space.dimensions.items():
        assert isinstance(dimension, Reals)
        fresh, factor = rng.random() < _FRESH_SHARE, _FACTORS[int(rng.integers(2))]
        value = dimension.at(float(rng.random())) if fresh else params[key] * factor
        out[key] = dimension.nearest(float(value))
    return out
