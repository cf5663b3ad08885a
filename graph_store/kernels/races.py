"""Draws with given weights that depend on nothing but ids: exponential races.

Of independent E_i / w_i with E_i from the exponential distribution, the smallest is that of i with
probability w_i / sum w. E_i is a hash of the id, so a draw is the same however rows are split and
ordered, and on any device: hashes are integers, and the logarithm is a series of IEEE operations
(a library's own may differ in the last bit from one machine to the next).
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

from . import races_compiled
from .compiled import for_each_range, split_rows
from .races_compiled import LAST_TERM, LOG_2

_WRAP = 1 << 64
# Of splitmix64: what is added, and pairs of a shift and a factor.
_ADDED, _ROUNDS, _LAST_SHIFT = (
    0x9E3779B97F4A7C15,
    ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)),
    31,
)


def race(
    seed: int,
    step: int,
    num_races: int,
    node_ids: Int64[Tensor, " n"],
    weights: Float64[Tensor, " n"],
) -> tuple[Float64[Tensor, " races"], Int64[Tensor, " races"]]:
    """The smallest E_i / w_i of each race, inf if all weights are 0, and whose it is, or -1.

    Races of one step are independent; of equal keys the lowest id's wins.
    """
    salts = [_salt(seed, step, trial) for trial in range(num_races)]
    if weights.device.type == "cpu":
        return _race_on_cpu(salts, node_ids, weights)
    if not len(weights):
        nobody = torch.full((num_races,), -1, device=weights.device)
        return torch.full_like(nobody, torch.inf, dtype=torch.float64), nobody
    keys, positions = [], []
    for salt in salts:
        key = exponentials(_uniform(_mix(node_ids ^ _signed(salt)))) / weights
        key = torch.where(weights > 0, key, torch.inf)
        keys.append(key.amin())
        lowest = torch.where(key == keys[-1], node_ids, torch.iinfo(torch.int64).max).argmin()
        positions.append(torch.where(torch.isinf(keys[-1]), -1, lowest))
    return torch.stack(keys), torch.stack(positions)


def exponentials(uniform: Float64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """-log u, as log u = e log 2 + log f with f in [1/2, 1) and a series in (1 - f) / (1 + f)."""
    fraction, exponent = torch.frexp(uniform)
    s = (1.0 - fraction) / (1.0 + fraction)
    square, total = s * s, torch.zeros_like(s)
    for term in range(LAST_TERM, 0, -2):
        total = total * square + 1.0 / term
    return 2.0 * s * total - exponent.to(torch.float64) * LOG_2


def _race_on_cpu(
    salts: list[int], node_ids: Int64[Tensor, " n"], weights: Float64[Tensor, " n"]
) -> tuple[Float64[Tensor, " races"], Int64[Tensor, " races"]]:
    ranges = split_rows(len(weights), len(weights) * len(salts))
    keys = np.full((len(ranges), len(salts)), np.inf)
    at = np.full(keys.shape, -1)
    ids, own = node_ids.contiguous().numpy(), weights.contiguous().numpy()
    salted = np.array(salts, np.uint64)
    parts = {span: part for part, span in enumerate(ranges)}

    def run(a: int, b: int) -> None:
        part = parts[a, b]
        races_compiled.race(ids[a:b], own[a:b], salted, a, keys[part], at[part])

    for_each_range(run, ranges)
    # By key, then by id.
    of_winner = np.where(at < 0, np.iinfo(np.int64).max, ids[at] if len(ids) else 0)
    first = np.lexsort((of_winner, keys), axis=0)[0]
    races = np.arange(len(salts))
    return torch.from_numpy(keys[first, races]), torch.from_numpy(at[first, races])


def _salt(seed: int, step: int, trial: int) -> int:
    salt = 0
    for number in (seed, step, trial):
        salt = _mix_number((number % _WRAP) ^ salt)
    return salt


def _mix_number(number: int) -> int:
    """`refine_compiled.mix` of a Python integer."""
    z = (number + _ADDED) % _WRAP
    for shift, factor in _ROUNDS:
        z = (z ^ (z >> shift)) * factor % _WRAP
    return z ^ (z >> _LAST_SHIFT)


def _mix(numbers: Int64[Tensor, " n"]) -> Int64[Tensor, " n"]:
    """The same; int64 has the same bits as uint64 but for shifts."""
    z = numbers + _signed(_ADDED)
    for shift, factor in _ROUNDS:
        z = (z ^ _shifted(z, shift)) * _signed(factor)
    return z ^ _shifted(z, _LAST_SHIFT)


def _uniform(numbers: Int64[Tensor, " n"]) -> Float64[Tensor, " n"]:
    """The upper 52 bits as a number between 0 and 1."""
    return (_shifted(numbers, 12).to(torch.float64) + 0.5) * 2.0**-52


def _shifted(z: Int64[Tensor, " n"], shift: int) -> Int64[Tensor, " n"]:
    return (z >> shift) & ((1 << (64 - shift)) - 1)


def _signed(number: int) -> int:
    return number - _WRAP if number >= _WRAP // 2 else number
