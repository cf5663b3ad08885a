"""Sweeps of graphs as TOML files: what is searched, how, and how a point is scored.

metric = "accuracy"                  # of hidden labels; or "balanced_accuracy"

[search]
by = "random"                        # or "grid" or "tpe"
num_samples = 100

[folds]                              # labels are hidden fold by fold, and dealt several times
count = 5
repeats = 10

[set]                                # the same for all points
method = "local_global"

[space]                              # see `space`
k = { int = [5, 50], log = true }
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..trainers.config import ConfigError, read_toml
from .graph_params import KEYS, check_values, largest_k
from .graph_points import GraphMetric
from .space import SearchSpace, check_keys, parse_space

_PREFIX = "graph-"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Search(_Section):
    """How points are chosen. `num_samples`, `batch` and `seed` mean nothing to a grid."""

    searcher: Literal["grid", "random", "optuna"] = "random"
    num_samples: int = Field(100, ge=1)
    batch: int = Field(16, ge=1, description="points that TPE chooses before it learns from them")
    seed: int = 0


class Folds(_Section):
    """Which labels are hidden; see `graph_folds.deal_folds`."""

    count: int = Field(5, ge=2)
    repeats: int = Field(10, ge=1)
    max_judged: int = Field(500, ge=2)
    seed: int = 0


class _File(_Section):
    metric: GraphMetric = "accuracy"
    unreached: float = Field(0.0, ge=0, le=1)
    tol: float = Field(1e-6, gt=0, lt=1)
    search: Search = Search()
    folds: Folds = Folds()
    set: dict[str, Any] = Field(default_factory=dict)
    space: dict[str, Any]


class GraphSweep(_Section):
    """A sweep, checked.

    Attributes:
        metric, unreached, tol: See `graph_points.Problem`.
        fixed: Parameters that all points share.
        max_k: Most neighbours that a point may ask for.
    """

    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True)

    name: str
    metric: GraphMetric
    unreached: float
    tol: float
    search: Search
    folds: Folds
    fixed: dict[str, Any]
    space: SearchSpace
    max_k: int

    def with_defaults(self, params: Mapping[str, Any]) -> GraphSweep:
        """The sweep with other defaults for what it neither sets nor searches."""
        kept = {key: value for key, value in params.items() if key not in self.space.dimensions}
        fixed = {**kept, **self.fixed}
        max_k = largest_k(self.space, fixed, source=self.name)
        return self.model_copy(update={"fixed": fixed, "max_k": max_k})


def shipped_graph_sweeps() -> dict[str, Path]:
    """Sweeps of graphs in the package, by name."""
    folder = Path(__file__).parent / "sweeps"
    return {path.stem: path for path in sorted(folder.glob(f"{_PREFIX}*.toml"))}


def load_graph_sweep(sweep: str | Path, overrides: Mapping[str, Any] | None = None) -> GraphSweep:
    """Read a shipped sweep (by name, with or without "graph-") or a file.

    Args:
        overrides: By dotted key of the file, `{"search.num_samples": 20}`.

    Raises:
        ConfigError: No such file, or something in it is wrong: one sentence.
    """
    shipped = shipped_graph_sweeps()
    path = shipped.get(str(sweep)) or shipped.get(f"{_PREFIX}{sweep}") or Path(sweep)
    if not path.is_file():
        near = difflib.get_close_matches(str(sweep), shipped, n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"no sweep {str(sweep)!r}: neither a file nor one of {', '.join(shipped)}{hint}"
        )
    raw = read_toml(path)
    for key, value in (overrides or {}).items():
        _assign(raw, key, value)
    return parse_graph_sweep(raw, name=path.stem, source=str(sweep))


def parse_graph_sweep(raw: Mapping[str, Any], *, name: str, source: str) -> GraphSweep:
    """Check a nested mapping as read from TOML.

    Raises:
        ConfigError: One sentence that names the key, its value and the remedy.
    """
    _refuse_unknown(raw, source)
    try:
        file = _File(**raw)
        space = parse_space(file.space, source=source)
        check_keys(space, KEYS, source=source)
        for key in file.set:
            if key not in KEYS:
                raise ConfigError(f"{source}: unknown key {key!r} in [set]{_hint(key, KEYS)}")
            if key in file.space:
                raise ConfigError(f"{source}: {key!r} is in [set] and in [space]; keep one of them")
        check_values(space, file.set, source=source)
        max_k = largest_k(space, file.set, source=source)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_sentence(error)}") from None
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return GraphSweep(
        name=name,
        metric=file.metric,
        unreached=file.unreached,
        tol=file.tol,
        search=file.search,
        folds=file.folds,
        fixed=file.set,
        space=space,
        max_k=max_k,
    )


def _refuse_unknown(raw: Mapping[str, Any], source: str) -> None:
    known = [*_File.model_fields]
    sections: dict[str, type[BaseModel]] = {"search": Search, "folds": Folds}
    for key, value in raw.items():
        if key not in known:
            raise ConfigError(f"{source}: unknown key {key!r}{_hint(key, known)}")
        if key in sections and isinstance(value, Mapping):
            fields = [*sections[key].model_fields]
            for leaf in value:
                if leaf not in fields:
                    raise ConfigError(f"{source}: unknown key '{key}.{leaf}'{_hint(leaf, fields)}")


def _hint(key: str, known: Any) -> str:
    near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(known)}"


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    path = ".".join(map(str, first["loc"]))
    if first["type"] == "missing":
        return f"[{path}] is missing"
    return f"{path} = {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"


def _assign(raw: dict[str, Any], key: str, value: Any) -> None:
    *parents, leaf = key.split(".")
    for part in parents:
        raw = raw.setdefault(part, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"--set {key}: {part!r} is a value, not a section")
    raw[leaf] = value
