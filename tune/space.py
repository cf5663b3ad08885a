"""Search spaces over dotted keys, as the `[space]` of a sweep's TOML file gives them.

    [space]
    "graph.k" = {int = [5, 50], log = true}       # both ends are possible; step = 5
    "method.sigma" = {uniform = [0.2, 1.2]}       # step = 0.1
    "train.lr" = {loguniform = [1e-3, 1e-1]}
    "method.paths" = {choice = ["l", "lu"]}       # one of them
    "method.hops" = {grid = [0, 1, 2]}            # each of them, with every draw of the others

Every draw is a function of a seed and the point's number alone: the same sweep tries the same
points in the same order, however many run at a time.
"""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Value = bool | int | float | str
_ATTEMPTS = 100


@dataclass(frozen=True)
class Integers:
    """Whole numbers from `low` to `high`, both possible; with `log`, alike in every octave."""

    low: int
    high: int
    log: bool = False
    step: int = 1

    @property
    def values(self) -> tuple[Value, ...] | None:
        """What can be drawn."""
        return tuple(range(self.low, self.high + 1, self.step))

    @property
    def extremes(self) -> tuple[Value, ...]:
        return self.low, self.high

    def at(self, u: float) -> Value:
        """The value below which a share `u` in [0, 1) of the draws lies."""
        if self.log:
            low, high = math.log(self.low - 0.5), math.log(self.high + 0.5)
            drawn = round(math.exp(low + u * (high - low)))
            return min(max(drawn, self.low), self.high)
        count = (self.high - self.low) // self.step + 1
        return self.low + self.step * min(int(u * count), count - 1)


@dataclass(frozen=True)
class Reals:
    """Numbers from `low` to `high`; `step` = None is a continuum."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def values(self) -> tuple[Value, ...] | None:
        """What can be drawn; None for a continuum."""
        if self.step is None:
            return None
        return tuple(self._stepped(i) for i in range(self._num_steps))

    @property
    def extremes(self) -> tuple[Value, ...]:
        return self.low, self.high

    def at(self, u: float) -> Value:
        """The value below which a share `u` in [0, 1) of the draws lies."""
        if self.log:
            low, high = math.log(self.low), math.log(self.high)
            return min(max(math.exp(low + u * (high - low)), self.low), self.high)
        if self.step is None:
            return self.low + u * (self.high - self.low)
        return self._stepped(min(int(u * self._num_steps), self._num_steps - 1))

    def nearest(self, value: float) -> float:
        """What can be drawn and lies nearest to `value`."""
        value = min(max(value, self.low), self.high)
        if self.step is None:
            return value
        return self._stepped(min(round((value - self.low) / self.step), self._num_steps - 1))

    @property
    def _num_steps(self) -> int:
        assert self.step is not None
        return math.floor((self.high - self.low) / self.step + 1e-9) + 1

    def _stepped(self, i: int) -> float:
        assert self.step is not None
        # 12 digits: 0.3 instead of 0.30000000000000004
        return float(f"{self.low + i * self.step:.12g}")


@dataclass(frozen=True)
class Choice:
    """One of some values; with `every`, a grid: each of them is tried."""

    options: tuple[Value, ...]
    every: bool = False

    @property
    def values(self) -> tuple[Value, ...] | None:
        return self.options

    @property
    def extremes(self) -> tuple[Value, ...]:
        """All of them: the order says nothing about which is extreme."""
        return self.options

    def at(self, u: float) -> Value:
        """The option that a number `u` in [0, 1) stands for."""
        return self.options[min(int(u * len(self.options)), len(self.options) - 1)]


Dimension = Integers | Reals | Choice


@dataclass(frozen=True)
class SearchSpace:
    """What is searched, by dotted key, in the file's order."""

    dimensions: Mapping[str, Dimension]

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self.dimensions)

    @property
    def log_keys(self) -> tuple[str, ...]:
        """Keys that are searched by order of magnitude."""
        return tuple(k for k, d in self.dimensions.items() if not isinstance(d, Choice) and d.log)

    @property
    def grids(self) -> dict[str, Dimension]:
        return {k: d for k, d in self.dimensions.items() if isinstance(d, Choice) and d.every}


_OPTIONS = {
    "int": {"log", "step"},
    "uniform": {"step"},
    "loguniform": set[str](),
    "choice": set[str](),
    "grid": set[str](),
}


def parse_space(raw: Mapping[str, Any], *, source: str = "sweep") -> SearchSpace:
    """Read a `[space]` table.

    Raises:
        ValueError: One sentence that names the key, what is wrong and what is allowed.
    """
    if not raw:
        raise ValueError(f"{source}: [space] is empty; give at least one key to search")
    return SearchSpace({key: _dimension(f"{source}: space.{key!r}", raw[key]) for key in raw})


def check_keys(space: SearchSpace, known: Collection[str], *, source: str = "sweep") -> None:
    """Refuse keys that nothing reads.

    Raises:
        ValueError: Names the key and the nearest known one.
    """
    for key in space.keys:
        if key not in known:
            near = difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known are {_joined(known)}"
            raise ValueError(f"{source}: unknown key {key!r} in [space]{hint}")


def random_points(space: SearchSpace, num_samples: int, *, seed: int) -> tuple[dict[str, Any], ...]:
    """`num_samples` draws, each with every cell of the grids.

    Point i of a seed is the same whatever `num_samples` is. A draw that was had before is skipped:
    a space with fewer values than `num_samples` gives as many points as it has.
    """
    free = {k: d for k, d in space.dimensions.items() if k not in space.grids}
    cells = _product(space.grids)
    drawn: list[dict[str, Any]] = []
    seen: set[str] = set()
    for attempt in range(_ATTEMPTS * num_samples):
        numbers = np.random.default_rng([seed, attempt]).random(len(free))
        point = {k: d.at(float(u)) for (k, d), u in zip(free.items(), numbers)}
        if repr(point) not in seen:
            seen.add(repr(point))
            drawn.append(point)
        if len(drawn) == num_samples or not free:
            break
    return tuple({k: {**p, **c}[k] for k in space.keys} for p in drawn for c in cells)


def grid_points(space: SearchSpace) -> tuple[dict[str, Any], ...]:
    """Every combination of the values, the last key's changing first.

    Raises:
        ValueError: A key has no finite number of values.
    """
    for key, dimension in space.dimensions.items():
        if dimension.values is None:
            raise ValueError(
                f"space.{key!r} is a continuum, which no grid covers; give it as "
                "{grid = [...]} or with a step"
            )
    return _product(space.dimensions)


def _product(dimensions: Mapping[str, Dimension]) -> tuple[dict[str, Any], ...]:
    values = [dimension.values or () for dimension in dimensions.values()]
    return tuple(dict(zip(dimensions, row)) for row in itertools.product(*values))


def _dimension(where: str, raw: Any) -> Dimension:
    if not isinstance(raw, Mapping):
        raise ValueError(
            f"{where} = {raw!r}: expected one of {_joined(_OPTIONS)}, for example {{int = [5, 50]}}"
        )
    kinds = [name for name in raw if name in _OPTIONS]
    strangers = [name for name in raw if name not in {*_OPTIONS, "log", "step"}]
    if strangers:
        near = difflib.get_close_matches(strangers[0], [*_OPTIONS, "log", "step"], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known are {_joined(_OPTIONS)}"
        raise ValueError(f"{where}: unknown kind {strangers[0]!r}{hint}")
    if len(kinds) != 1:
        found = _joined(kinds) if kinds else "none"
        raise ValueError(f"{where}: expected exactly one of {_joined(_OPTIONS)}, got {found}")
    (kind,) = kinds
    options = {name: value for name, value in raw.items() if name != kind}
    for name in options:
        if name not in _OPTIONS[kind]:
            raise ValueError(f"{where}: {name!r} does not go with {kind!r}")
    if kind in {"choice", "grid"}:
        return _choice(where, raw[kind], every=kind == "grid")
    return _range(where, kind, raw[kind], options)


def _choice(where: str, raw: Any, *, every: bool) -> Choice:
    if not isinstance(raw, list) or not raw:
        raise ValueError(f"{where}: expected a list of values, got {raw!r}")
    for value in raw:
        if not isinstance(value, Value):
            raise ValueError(f"{where}: {value!r} is no number, text or true/false")
    if len({repr(value) for value in raw}) < len(raw):
        raise ValueError(f"{where}: {raw!r} names a value twice")
    return Choice(tuple(raw), every)


def _range(where: str, kind: str, raw: Any, options: Mapping[str, Any]) -> Dimension:
    whole = kind == "int"
    kinds = "whole numbers" if whole else "finite numbers"
    is_pair = isinstance(raw, list) and len(raw) == 2
    if not is_pair or not all(_is_number(v, whole=whole) for v in raw):
        raise ValueError(f"{where}: expected {kind} = [low, high] with {kinds}, got {raw!r}")
    low, high = raw
    if low >= high:
        raise ValueError(f"{where}: {kind} = {raw!r}: low must be below high")
    log, step = options.get("log", False), options.get("step")
    if not isinstance(log, bool):
        raise ValueError(f"{where}: log = {log!r}: must be true or false")
    if (log or kind == "loguniform") and low <= 0:
        raise ValueError(f"{where}: low = {low!r}: a logarithmic range begins above 0")
    if step is not None and not (_is_number(step, whole=whole) and 0 < step <= high - low):
        raise ValueError(f"{where}: step = {step!r}: must be above 0 and within the range")
    if not whole:
        is_log = kind == "loguniform"
        return Reals(float(low), float(high), is_log, None if step is None else float(step))
    if log and step is not None:
        raise ValueError(f"{where}: log and step exclude each other")
    return Integers(low, high, log, 1 if step is None else step)


def _is_number(value: Any, *, whole: bool) -> bool:
    if isinstance(value, bool):
        return False
    return isinstance(value, int) or (
        not whole and isinstance(value, float) and math.isfinite(value)
    )


def _joined(names: Collection[str] | Sequence[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))
