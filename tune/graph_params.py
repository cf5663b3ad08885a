"""The parameters of a graph sweep: which there are, and which of them a method reads.

A point of a sweep has only the parameters that its method reads: `alpha` of Laplace learning says
nothing, and points that differ in nothing else are one point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

from ..graph_store.labeling import METHODS, Propagation
from ..graph_store.path_meetings import Reach
from ..graph_store.view import AffinityKind
from .space import Choice, SearchSpace

_WEIGHTED = ("affinity", "gamma")
_READS: dict[str, tuple[str, ...]] = {
    "poisson": _WEIGHTED,
    "poisson_mbo": _WEIGHTED,
    "laplace": (*_WEIGHTED, "tau"),
    "p_laplace": (*_WEIGHTED, "tau", "p"),
    "wnll": (*_WEIGHTED, "tau"),
    "poisson_reweighted": (*_WEIGHTED, "tau"),
    "properly_weighted": (*_WEIGHTED, "tau"),
    "local_global": (*_WEIGHTED, "alpha", "balance_classes"),
    "random_walk": (*_WEIGHTED, "alpha"),
    "nearest_labeled": _WEIGHTED,
    "density_paths": ("sigma", "paths"),
}
KEYS = (
    "method",
    "k",
    "affinity",
    "gamma",
    "alpha",
    "balance_classes",
    "tau",
    "p",
    "sigma",
    "paths",
)
_ONE_OF: dict[str, tuple[str, ...]] = {
    "method": METHODS,
    "affinity": get_args(AffinityKind),
    "paths": get_args(Reach),
}
DEFAULTS: dict[str, Any] = {"method": "poisson", "k": 20}
Params = dict[str, Any]


@dataclass(frozen=True)
class Solver:
    """What a point asks for: `how` on the graph of `k` neighbours, and which labels arrive along
    paths."""

    how: Propagation
    k: int
    reach: Reach


def relevant(params: Mapping[str, Any]) -> Params:
    """Those parameters that the point's method reads, `method` and `k` always among them."""
    full = {**DEFAULTS, **params}
    kept = {"method", "k", *_READS[full["method"]]}
    if full.get("affinity", "self_tuning") != "power":
        kept.discard("gamma")
    return {key: full[key] for key in KEYS if key in kept and key in full}


def is_read(key: str, params: Mapping[str, Any]) -> bool:
    """Whether a point with these parameters reads the key."""
    return key in relevant({**params, key: params.get(key, DEFAULTS.get(key))})


def solver(params: Mapping[str, Any], tol: float) -> Solver:
    """The solver of a point.

    Raises:
        ValueError: A value of the wrong kind.
    """
    values = relevant(params)
    for key, kinds in _KINDS.items():
        if key in values and not isinstance(values[key], kinds):
            raise ValueError(f"{key} = {values[key]!r} is no {kinds[-1].__name__}")
    options: dict[str, Any] = {}
    for key in ("affinity", "balance_classes"):
        if key in values:
            options[key] = values[key]
    for key in ("gamma", "alpha", "tau", "p", "sigma"):
        if key in values:
            options[key] = float(values[key])
    how = Propagation(values["method"], tol=tol, **options)
    return Solver(how, values["k"], cast(Reach, values.get("paths", "lu")))


_KINDS: dict[str, tuple[type, ...]] = {
    "k": (int,),
    "balance_classes": (bool,),
    **{key: (int, float) for key in ("gamma", "alpha", "tau", "p", "sigma")},
}


def check_values(space: SearchSpace, fixed: Mapping[str, Any], *, source: str) -> None:
    """Refuse names that do not exist, before anything is computed.

    Raises:
        ValueError: Names the key, the value and what is known.
    """
    for key, known in _ONE_OF.items():
        dimension = space.dimensions.get(key)
        values = [fixed[key]] if key in fixed else []
        if dimension is not None:
            if not isinstance(dimension, Choice):
                raise ValueError(f"{source}: {key} is one of {', '.join(known)}; give a choice")
            values = [*values, *dimension.options]
        for value in values:
            if value not in known:
                raise ValueError(f"{source}: {key} = {value!r}: known are {', '.join(known)}")


def largest_k(space: SearchSpace, fixed: Mapping[str, Any], *, source: str) -> int:
    """Most neighbours that any point may ask for.

    Raises:
        ValueError: Some k is no whole number of at least 1.
    """
    dimension = space.dimensions.get("k")
    values = [fixed.get("k", DEFAULTS["k"])] if dimension is None else list(dimension.extremes)
    largest = 0
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{source}: k = {value!r} must be a whole number of at least 1")
        largest = max(largest, value)
    return largest
