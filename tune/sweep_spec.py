"""From a sweep's TOML file to a checked, frozen `SweepSpec`, and from it to each run's.

    config = "dag-digits"          # what is tuned: a shipped name or a path
    metric = "val/accuracy"

    [set]                          # overrides for all runs
    "data.val_share" = 0.2
    [search]                       # which points, how often each
    searcher = "random"            # "random" | "grid" | "optuna"
    num_samples = 12
    num_seeds = 2
    [scheduler]                    # which of them are given up early
    kind = "asha"                  # "none" | "asha" | "pbt"
    [space]                        # see space.py
    "graph.k" = {int = [5, 40], log = true}

The test split decides nothing: no metric of it is taken, and the runs of a sweep are told to leave
it alone (`train.score_test = false`).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import tomli_w
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ..datasets.masking import refuse_secrets
from ..trainers.config import (
    ConfigError,
    RunSpec,
    check_run_name,
    load_config,
    read_toml,
    shipped_configs,
    with_absolute_uris,
    with_overrides,
)
from .metrics import METRICS
from .points import Mode
from .space import Reals, SearchSpace, grid_points, parse_space

_OURS = {
    "name": "a point's folder names it",
    "method.name": "its hyperparameters are another method's; make a sweep for each",
    "output.uri": "give --out instead",
    "train.score_test": "a sweep never reads the test split",
    "train.pause_after": "a sweep says itself how far its runs go",
    "train.baseline_steps": "the runs of a sweep train no baseline",
}
_SWEEP_SECTIONS = ("search.", "scheduler.")
_SWEEP_KEYS = ("config", "metric", "mode")
TRIAL_OVERRIDES = {"train.score_test": False, "train.baseline_steps": 0}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class SearchSpec(_Section):
    """Which points are tried. Every point is run `num_seeds` times, with each key of `seed_keys`
    raised by 0, 1, 2 ...: ["seed", "data.split_seed"] draws other labeled samples, too."""

    searcher: Literal["random", "grid", "optuna"] = "random"
    num_samples: int = Field(16, ge=1)
    num_seeds: int = Field(1, ge=1)
    seed_keys: tuple[str, ...] = ("seed",)
    seed: int = Field(0, ge=0)
    max_concurrent: int | None = Field(None, ge=1)


class SchedulerSpec(_Section):
    """Which points are given up early, by the rounds (epochs) that they have done.

    "asha": at `grace`, `grace * reduction` ... rounds a point goes on if it is among the best
    1 / `reduction` of those that came so far; judged by its first seed, the others are run for
    points that reach the end. "pbt": all points go on side by side, and every `interval` rounds
    the worst `quantile` of them go on from the best ones' weights with changed values.
    """

    kind: Literal["none", "asha", "pbt"] = "none"
    grace: int = Field(1, ge=1)
    reduction: float = Field(3.0, gt=1)
    interval: int = Field(1, ge=1)
    quantile: float = Field(0.25, gt=0, le=0.5)


class SweepSpec(_Section):
    """A sweep as its file describes it. `mode` is the metric's own unless told."""

    name: Annotated[str, AfterValidator(check_run_name)]
    config: str
    metric: str = "val/accuracy"
    mode: Mode = "max"
    overrides: dict[str, Any] = Field(default_factory=dict, alias="set")
    search: SearchSpec = SearchSpec()
    scheduler: SchedulerSpec = SchedulerSpec()
    space: dict[str, Any]

    @property
    def search_space(self) -> SearchSpace:
        return parse_space(self.space)

    @field_validator("metric")
    @classmethod
    def _is_known(cls, metric: str) -> str:
        if "test" in metric.split("/"):
            raise ValueError(
                f"metric = {metric!r}: a sweep that chose by the test split would leave nothing to "
                "test with; use 'val/accuracy'"
            )
        if metric not in METRICS:
            near = difflib.get_close_matches(metric, METRICS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"metric = {metric!r}: known are {', '.join(METRICS)}{hint}")
        return metric

    @model_validator(mode="before")
    @classmethod
    def _own_mode(cls, raw: Any) -> Any:
        if isinstance(raw, Mapping) and raw.get("mode") is None:
            metric = METRICS.get(str(raw.get("metric", "val/accuracy")))
            return {**raw, "mode": metric.mode if metric else "max"}
        return raw

    @model_validator(mode="after")
    def _fits_together(self) -> SweepSpec:
        space = self.search_space
        for key in space.keys:
            if key in _OURS:
                raise ValueError(f"{key!r} cannot be searched: {_OURS[key]}")
            if key in self.overrides:
                raise ValueError(f"{key!r} is both set and searched; keep one of them")
            if key in self.search.seed_keys:
                raise ValueError(f"{key!r} is searched and one of search.seed_keys; keep one")
        for key in self.overrides:
            if key in _OURS:
                raise ValueError(f"{key!r} cannot be set in a sweep: {_OURS[key]}")
        if self.search.searcher == "grid":
            grid_points(space)
        if self.search.searcher == "optuna" and space.grids:
            key = next(iter(space.grids))
            raise ValueError(
                f"{key!r} is a grid, but search.searcher = 'optuna' chooses its values itself; "
                "give it as {choice = [...]}"
            )
        if self.scheduler.kind == "pbt":
            _check_population(self, space)
        return self

    def to_toml(self) -> str:
        """The resolved sweep; `load_sweep` reads it back to an equal spec."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True, by_alias=True))


def _check_population(spec: SweepSpec, space: SearchSpace) -> None:
    """What may change while a run goes on; the rest is built into its network or its store."""
    if spec.search.searcher != "random":
        raise ValueError(
            "scheduler.kind = 'pbt' changes the points itself; use search.searcher = 'random'"
        )
    if spec.search.num_seeds > 1:
        raise ValueError(
            f"scheduler.kind = 'pbt' with search.num_seeds = {spec.search.num_seeds}: a point is "
            "one run whose values change; set it to 1"
        )
    if spec.search.num_samples < 2:
        raise ValueError("scheduler.kind = 'pbt' needs search.num_samples of at least 2")
    for key, dimension in space.dimensions.items():
        may_change = key in {"train.lr", "train.ema_decay"} or key.startswith("method.")
        if not (may_change and isinstance(dimension, Reals)):
            raise ValueError(
                f"{key!r} cannot change while a run goes on: scheduler.kind = 'pbt' takes uniform "
                "and loguniform ranges of train.lr, train.ema_decay and method.*"
            )


def shipped_sweeps() -> dict[str, Path]:
    """Sweeps of training runs in the package, by name."""
    folder = Path(__file__).parent / "sweeps"
    paths = sorted(folder.glob("*.toml"))
    return {p.stem: p for p in paths if not p.stem.startswith("graph-")}


def load_sweep(sweep: str | Path, overrides: Mapping[str, Any] | None = None) -> SweepSpec:
    """Read a shipped sweep (by name) or a file, apply overrides by dotted key, check.

    Args:
        overrides: Of the sweep (`search.*`, `scheduler.*`, config, metric, mode) or of its runs
            (every other key).

    Raises:
        ConfigError: No such file, unknown key, wrong type or value out of range.
    """
    path = shipped_sweeps().get(str(sweep)) or Path(sweep)
    if (Path(__file__).parent / "sweeps" / f"{sweep}.toml").is_file() and str(sweep) not in (
        shipped_sweeps()
    ):
        raise ConfigError(
            f"{str(sweep)!r} sweeps the graph of a run alone: labelmesh tune-graph RUN {sweep}"
        )
    if not path.is_file():
        near = difflib.get_close_matches(str(sweep), shipped_sweeps(), n=1, cutoff=0.4)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"no sweep {str(sweep)!r}: neither a file nor one of "
            f"{', '.join(shipped_sweeps())}{hint}"
        )
    raw = read_toml(path)
    raw = {"name": path.stem, **raw}
    raw["config"] = _config_beside(path, raw.get("config"))
    for key, value in (overrides or {}).items():
        _assign(raw, key, value)
    return parse_sweep(raw, source=str(sweep))


def parse_sweep(raw: Mapping[str, Any], *, source: str = "sweep") -> SweepSpec:
    """Check a sweep as read from TOML.

    Raises:
        ConfigError: One sentence naming the first wrong key, its value and the remedy.
    """
    try:
        refuse_secrets(dict(raw), "")  # first, as other errors show values
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    known = {"set", *(name for name in SweepSpec.model_fields if name != "overrides")}
    sections: dict[str, type[BaseModel]] = {"search": SearchSpec, "scheduler": SchedulerSpec}
    dotted = known | {f"{s}.{name}" for s, m in sections.items() for name in m.model_fields}
    for key, value in raw.items():
        leaves = value if key in sections and isinstance(value, Mapping) else [""]
        for leaf in leaves:
            name = f"{key}.{leaf}" if leaf else key
            if name not in dotted:
                near = difflib.get_close_matches(name, dotted, n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ConfigError(f"{source}: unknown key {name!r}{hint}")
    try:
        refuse_secrets(raw, "")
    except ValueError as error:
        raise ConfigError(f"{source}: {error}") from None
    try:
        return SweepSpec(**raw)
    except ValidationError as error:
        raise ConfigError(f"{source}: {_first_problem(error)}") from None


def base_run(spec: SweepSpec) -> RunSpec:
    """The run that is tuned, with the sweep's overrides; every key of the space is tried on it.

    Raises:
        ConfigError: Unknown key or value out of range, in [set] or in [space].
    """
    base = with_absolute_uris(load_config(spec.config, spec.overrides))
    for key in spec.search.seed_keys:
        _seed_of(base, key)
    for key, dimension in spec.search_space.dimensions.items():
        for value in dimension.extremes:
            try:
                with_overrides(base, {key: value})
            except ConfigError as error:
                raise ConfigError(f"[space] {key!r} = {value!r}: {error}") from None
    return base


def trial_run(spec: SweepSpec, base: RunSpec, params: Mapping[str, Any], seed: int) -> RunSpec:
    """The run of one point with its seed number `seed`; never reads the test split.

    Raises:
        ConfigError: The values do not go together.
    """
    seeds = {key: _seed_of(base, key) + seed for key in spec.search.seed_keys}
    changed = with_overrides(base, {**params, **seeds, **TRIAL_OVERRIDES})
    return changed.model_copy(update={"name": f"seed-{seed}"})


def best_run(spec: SweepSpec, base: RunSpec, params: Mapping[str, Any]) -> RunSpec:
    """The configuration of a point as `labelmesh train` takes it: with its test at the end."""
    return with_overrides(base, params).model_copy(update={"name": f"{spec.name}-best"})


def _seed_of(base: RunSpec, key: str) -> int:
    value: Any = base.model_dump()
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ConfigError(
            f"search.seed_keys: {key!r} is no whole number of the configuration; use 'seed' or "
            "'data.split_seed'"
        )
    return value


def _config_beside(path: Path, config: Any) -> Any:
    """A configuration's path is looked for beside the sweep's file first."""
    if not isinstance(config, str) or config in shipped_configs():
        return config
    beside = path.parent / config
    return str(beside) if beside.is_file() else config


def _assign(raw: dict[str, Any], key: str, value: Any) -> None:
    if key.startswith(_SWEEP_SECTIONS):
        section, leaf = key.split(".", 1)
        raw[section] = {**raw.get(section, {}), leaf: value}
    elif key in _SWEEP_KEYS:
        raw[key] = value
    elif key == "name":
        raise ConfigError("--set name: give --name instead")
    elif key.startswith("space."):
        raise ConfigError(f"--set {key}: what is searched is said in the sweep's file")
    else:
        raw["set"] = {**raw.get("set", {}), key: value}


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    path = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return message
    if first["type"] == "missing":
        return f"{path} is missing"
    return f"{path} = {first['input']!r}: {message[0].lower()}{message[1:]}"
