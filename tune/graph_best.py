"""What to do with the best point of a graph sweep: a run's configuration, or a command."""

from __future__ import annotations

import math
import shlex
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..trainers.config import ConfigError, RunSpec, method_name, parse_spec
from .graph_params import DEFAULTS, relevant
from .points import Point, SweepResult

_PROPAGATION = ("alpha", "gamma", "balance_classes")
_PATHS = ("sigma", "paths")
_SEEN = (
    "The network was trained with the labels that were hidden here, so scores on its features are "
    "too high, and may prefer other values than unseen nodes do; features that no label has shaped "
    "(`labelmesh tune-graph FEATURES`) are judged fairly."
)


@dataclass(frozen=True)
class Best:
    """Attributes:
    config_toml: A configuration for `labelmesh train`; None where there is no run.
    command: How to use the point; None: train the configuration.
    notes: What a reader should know, a sentence each.
    """

    config_toml: str | None = None
    command: str | None = None
    notes: tuple[str, ...] = ()


def of_run(result: SweepResult, spec: RunSpec) -> Best:
    """The run's configuration with the best point that its method can use.

    Raises:
        ValueError: No point was finished.
    """
    usable = [p for p in _finished(result) if settings(p.params, spec) is not None]
    best, notes = result.best, [_SEEN]
    if usable:
        chosen = max(usable, key=lambda point: point.mean)
        found = settings(chosen.params, spec)
        assert found is not None
        if chosen is not best:
            notes.append(
                f"The method {method_name(spec.method)!r} cannot use the best point "
                f"({_described(best.params)}); best.toml has the best of those that it can, with "
                f"{result.metric} {chosen.mean:.4f} ({_described(chosen.params)})."
            )
    else:
        found = {"graph.k": best.params["k"]}
        notes.append(
            f"The method {method_name(spec.method)!r} has no parameter for the best point "
            f"({_described(best.params)}); of it best.toml has graph.k alone."
        )
    return Best(_with(spec, found), None, tuple(notes))


def of_features(result: SweepResult, features: str, *, labels: str | None, metric: str) -> Best:
    """The `labelmesh label` command with the best point.

    Raises:
        ValueError: No point was finished.
    """
    params = relevant(result.best.params)
    words = ["labelmesh", "label", features]
    words += [] if labels is None else ["--labels", labels]
    words += ["--metric", metric]
    notes = []
    for key, value in params.items():
        if key == "paths":
            if value != "lu":
                notes.append(
                    f"`labelmesh label` has paths of the kind 'lu' alone; the best point has "
                    f"{value!r}, which the method 'dag' of `labelmesh train` knows."
                )
        elif key == "balance_classes":
            words.append("--balance-classes" if value else "--no-balance-classes")
        else:
            words += [f"--{key}", str(value)]
    words += ["--out", "labels.parquet"]
    return Best(None, shlex.join(words), tuple(notes))


def run_params(spec: RunSpec) -> dict[str, Any]:
    """What the run's configuration says of a sweep's parameters; points that are not told otherwise
    have these."""
    values = spec.method.model_dump()
    found = {key: values[key] for key in (*_PROPAGATION, *_PATHS) if key in values}
    if found.get("paths") == "none":
        del found["paths"]
    return {"k": spec.graph.k, **found}


def settings(params: Mapping[str, Any], spec: RunSpec) -> dict[str, Any] | None:
    """A point as dotted keys of the run's configuration; None if its method cannot use it."""
    point, fields = relevant(params), set(type(spec.method).model_fields)
    own: tuple[str, ...]
    if {"sigma", "paths"} <= fields:
        fits, own = point["method"] == "density_paths", _PATHS
    elif {"alpha", "gamma"} <= fields:
        power = point.get("affinity") == "power"
        fits, own = point["method"] == "local_global" and power, _PROPAGATION
    elif "solver" in fields:
        plain = set(point) <= {"method", "k", "affinity"}
        fits = plain and point.get("affinity", "self_tuning") == "self_tuning"
        point, own = {**point, "solver": point["method"]}, ("solver",)
    else:
        fits, own = False, ()
    found = {f"method.{key}": point[key] for key in own if key in point}
    return {"graph.k": point["k"], **found} if fits and _is_valid(spec, found) else None


def _is_valid(spec: RunSpec, found: Mapping[str, Any]) -> bool:
    try:
        _with(spec, found)
    except ConfigError:
        return False
    return True


def _with(spec: RunSpec, found: Mapping[str, Any]) -> str:
    raw = tomllib.loads(spec.to_toml())
    raw["name"] = f"{spec.name}-tuned"
    for key, value in found.items():
        section, _, leaf = key.partition(".")
        raw[section][leaf] = value
    return parse_spec(raw, source="the best point").to_toml()


def _finished(result: SweepResult) -> list[Point]:
    return [p for p in result.points if p.state == "finished" and math.isfinite(p.mean)]


def _described(params: Mapping[str, Any]) -> str:
    values = {**DEFAULTS, **params}
    return ", ".join(
        f"{key} = {value:.4g}" if isinstance(value, float) else f"{key} = {value}"
        for key, value in values.items()
    )
