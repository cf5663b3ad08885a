"""Which points a graph sweep tries: a grid, random draws, or Optuna's TPE in batches.

A searcher is asked for batches until it has no more, and told the scores of one batch before it is
asked for the next. Points that differ only in what their method does not read are one point, which
is tried once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from .graph_params import KEYS, Params, is_read, relevant
from .points import Point
from .space import Choice, Dimension, Integers, SearchSpace, grid_points, random_points

# Draws that are asked for until as many different points have come up as wanted.
_MOST_DRAWS = 64


@runtime_checkable
class Searcher(Protocol):
    """Batches of points, and what becomes of them."""

    def ask(self) -> list[Params]:
        """The next batch, different from each other; empty: there are no more."""
        ...

    def tell(self, points: Sequence[Point]) -> None:
        """Scores of the batch that was asked for last, in its order."""
        ...


@dataclass
class Listed:
    """Points that are known beforehand: one batch."""

    points: list[Params]

    def ask(self) -> list[Params]:
        batch, self.points = self.points, []
        return batch

    def tell(self, points: Sequence[Point]) -> None:
        """Nothing is learnt from it."""


def grid(space: SearchSpace, fixed: Mapping[str, Any]) -> Searcher:
    """Every combination of the space's values.

    Raises:
        ValueError: A key has no finite number of values.
    """
    return Listed(distinct({**fixed, **point} for point in grid_points(space)))


def random(space: SearchSpace, fixed: Mapping[str, Any], num_samples: int, seed: int) -> Searcher:
    """`num_samples` different draws (times the space's grids), or all there are."""
    factor = math.prod(len(d.values or ()) for d in space.grids.values())
    draws, found = num_samples, list[Params]()
    while draws <= _MOST_DRAWS * num_samples:
        drawn = random_points(space, draws, seed=seed)
        found = distinct({**fixed, **point} for point in drawn)
        if len(found) >= num_samples * factor or len(drawn) < draws * factor:
            break
        draws *= 2
    return Listed(found[: num_samples * factor])


class Tpe:
    """Optuna's tree-structured Parzen estimator over the parameters that each point reads.

    All points of a batch are chosen before any of them is scored, so that the batch, not the
    number of workers, decides what is tried.
    """

    def __init__(
        self,
        space: SearchSpace,
        fixed: Mapping[str, Any],
        num_samples: int,
        *,
        seed: int,
        batch: int,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(
            seed=seed, n_startup_trials=max(10, batch), constant_liar=True
        )
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        self._space, self._fixed = space, fixed
        self._left, self._batch = num_samples, batch
        self._known: dict[str, float] = {}
        self._asked: list[tuple[Any, str]] = []

    def ask(self) -> list[Params]:
        found: list[Params] = []
        # A space may hold fewer different points than are asked for.
        for _ in range(10 * self._batch):
            if self._left == 0 or len(found) == self._batch:
                break
            trial = self._study.ask()
            params = relevant({**self._fixed, **self._suggest(trial)})
            name = key_of(params)
            if name in self._known:
                self._finish(trial, self._known[name])
                continue
            self._asked.append((trial, name))
            if name not in {other for _, other in self._asked[:-1]}:
                found.append(params)
                self._left -= 1
        return found

    def tell(self, points: Sequence[Point]) -> None:
        self._known |= {key_of(point.params): point.mean for point in points}
        for trial, name in self._asked:
            self._finish(trial, self._known[name])
        self._asked = []

    def _finish(self, trial: Any, score: float) -> None:
        from optuna.trial import TrialState

        if math.isfinite(score):
            self._study.tell(trial, score)
        else:
            self._study.tell(trial, state=TrialState.FAIL)

    def _suggest(self, trial: Any) -> Params:
        drawn: Params = {}
        # In the order of KEYS: what a method reads is known once the method is.
        for key in KEYS:
            dimension = self._space.dimensions.get(key)
            if dimension is not None and is_read(key, {**self._fixed, **drawn}):
                drawn[key] = _suggest(trial, key, dimension)
        return drawn


def distinct(points: Iterator[Params]) -> list[Params]:
    """What is left of each point by its method, each once, in order."""
    found: dict[str, Params] = {}
    for point in points:
        kept = relevant(point)
        found.setdefault(key_of(kept), kept)
    return list(found.values())


def key_of(params: Mapping[str, Any]) -> str:
    """A name for a point: equal for equal parameters alone."""
    return json.dumps(dict(params), sort_keys=True)


def _suggest(trial: Any, key: str, dimension: Dimension) -> Any:
    if isinstance(dimension, Choice):
        return trial.suggest_categorical(key, list(dimension.options))
    if isinstance(dimension, Integers):
        low, high = dimension.low, dimension.high
        return trial.suggest_int(key, low, high, step=dimension.step, log=dimension.log)
    low_, high_ = dimension.low, dimension.high
    return trial.suggest_float(key, low_, high_, step=dimension.step, log=dimension.log)
