"""Which point is tried next: from a list that is known beforehand, or as Optuna's TPE suggests.

Both are told what became of the points, so that a sweep that goes on after its driver died asks for
the rest alone. A list is the same whatever else happens; what TPE suggests depends on the points
that are finished when it is asked, and so on how many run at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from .points import Mode, Point
from .space import Choice, Dimension, Integers, Reals, SearchSpace, grid_points, random_points
from .sweep_spec import SweepSpec

if TYPE_CHECKING:
    import optuna

Params = Mapping[str, Any]


@runtime_checkable
class Searcher(Protocol):
    """Asked for points one by one, told about each that ends."""

    def ask(self) -> tuple[int, Params] | None:
        """(number, values) of the next point; None when there are no more."""
        ...

    def tell(self, index: int, point: Point) -> None:
        """What became of a point that was asked for."""
        ...


class ListSearcher:
    """Points in their order, but those that are done."""

    def __init__(self, points: Sequence[Params], done: Collection[int]) -> None:
        self._left = [(i, p) for i, p in enumerate(points) if i not in done]

    def ask(self) -> tuple[int, Params] | None:
        return self._left.pop(0) if self._left else None

    def tell(self, index: int, point: Point) -> None:
        pass


class OptunaSearcher:
    """Optuna's tree-structured Parzen estimator (Bergstra et al., NeurIPS 2011)."""

    def __init__(
        self,
        space: SearchSpace,
        *,
        mode: Mode,
        seed: int,
        num_samples: int,
        done: Mapping[int, Point],
        begun: Mapping[int, Params],
    ) -> None:
        """Begin, or go on.

        Args:
            done: Points that ended, by number.
            begun: Values of points that were interrupted: asked for first.
        """
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # A constant liar keeps points that run at the same time apart.
        sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        self._study = optuna.create_study(
            sampler=sampler, direction="maximize" if mode == "max" else "minimize"
        )
        self._distributions = {k: distribution(d) for k, d in space.dimensions.items()}
        self._trials: dict[int, optuna.trial.Trial] = {}
        for _, point in sorted(done.items()):
            self._study.add_trial(self._frozen(point))
        self._again = [(i, begun[i]) for i in sorted(begun) if i not in done]
        self._next = max([-1, *done, *begun]) + 1
        self._num_samples = num_samples

    def ask(self) -> tuple[int, Params] | None:
        if self._again:
            index, params = self._again.pop(0)
            self._study.enqueue_trial(dict(params))
        elif self._next < self._num_samples:
            index, self._next = self._next, self._next + 1
        else:
            return None
        trial = self._study.ask(self._distributions)
        self._trials[index] = trial
        return index, {key: trial.params[key] for key in self._distributions}

    def tell(self, index: int, point: Point) -> None:
        from optuna.trial import TrialState

        trial = self._trials.pop(index)
        if point.state == "finished":
            self._study.tell(trial, point.mean)
            return
        if point.scores:
            trial.report(point.mean, max(point.rounds, 1))
        state = TrialState.PRUNED if point.state == "stopped" else TrialState.FAIL
        self._study.tell(trial, state=state)

    def _frozen(self, point: Point) -> optuna.trial.FrozenTrial:
        """A point of an earlier driver, as the study keeps its trials."""
        import optuna
        from optuna.trial import TrialState

        states = {
            "finished": TrialState.COMPLETE,
            "stopped": TrialState.PRUNED,
            "failed": TrialState.FAIL,
        }
        told = {max(point.rounds, 1): point.mean} if point.scores else {}
        return optuna.create_trial(
            state=states[point.state],
            value=point.mean if point.state == "finished" else None,
            params=dict(point.params),
            distributions=self._distributions,
            intermediate_values=told,
        )


def distribution(dimension: Dimension) -> optuna.distributions.BaseDistribution:
    """Optuna's word for a dimension."""
    from optuna.distributions import (
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )

    if isinstance(dimension, Choice):
        return CategoricalDistribution(dimension.options)
    if isinstance(dimension, Integers):
        return IntDistribution(
            dimension.low, dimension.high, log=dimension.log, step=dimension.step
        )
    assert isinstance(dimension, Reals)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log, step=dimension.step)


def listed_points(spec: SweepSpec) -> tuple[Params, ...] | None:
    """All points of a sweep, where they are known beforehand."""
    search = spec.search
    if search.searcher == "optuna":
        return None
    if search.searcher == "grid":
        return grid_points(spec.search_space)
    return random_points(spec.search_space, search.num_samples, seed=search.seed)


def make_searcher(
    spec: SweepSpec, *, done: Mapping[int, Point], begun: Mapping[int, Params]
) -> Searcher:
    """The searcher that a sweep asks for, with the points of an earlier driver behind it."""
    points = listed_points(spec)
    if points is not None:
        return ListSearcher(points, done)
    return OptunaSearcher(
        spec.search_space,
        mode=spec.mode,
        seed=spec.search.seed,
        num_samples=spec.search.num_samples,
        done=done,
        begun=begun,
    )
