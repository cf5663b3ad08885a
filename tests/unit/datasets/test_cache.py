from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.datasets.cache import SampleCache


def values_of(ids: np.ndarray) -> np.ndarray:
    return np.stack([ids, 2 * ids, 3 * ids], axis=1).astype(np.float32)


def ask(cache: SampleCache, ids: list[int]) -> list[int]:
    """Look nodes up, insert the missing ones; which were missing. Checks the values."""
    wanted = np.array(ids)
    out = np.zeros((len(ids), 3), np.float32)
    missing = cache.lookup(wanted, out)
    np.testing.assert_array_equal(out[~missing], values_of(wanted[~missing]))
    new = np.unique(wanted[missing])
    cache.insert(new, values_of(new))
    return new.tolist()


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 12),
    st.lists(st.lists(st.integers(0, 19), min_size=1, max_size=10), max_size=25),
)
def test_hits_are_right_and_the_size_is_kept(num_slots: int, batches: list[list[int]]) -> None:
    cache = SampleCache(20, (3,), np.float32, 12 * num_slots + 5)
    for ids in batches:
        ask(cache, ids)
    held = [n for n in range(20) if not cache.lookup(np.array([n]), np.zeros((1, 3), np.float32))]
    assert len(held) <= num_slots


def test_room_for_all_never_asks_twice() -> None:
    cache = SampleCache(6, (3,), np.float32, 1 << 20)
    assert ask(cache, [0, 1, 2]) == [0, 1, 2]
    assert ask(cache, [2, 3, 1]) == [3]
    assert ask(cache, [5, 4, 0]) == [4, 5]
    assert ask(cache, list(range(6))) == []


def test_what_is_used_all_the_time_stays() -> None:
    """Two nodes come back in every batch, the others pass through: the two are read once."""
    cache = SampleCache(1000, (3,), np.float32, 12 * 8)
    ask(cache, [0, 1])
    for start in range(2, 1000, 3):
        assert not {0, 1} & set(ask(cache, [0, 1, start, start + 1][: 1001 - start]))
