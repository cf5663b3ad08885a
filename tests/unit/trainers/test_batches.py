"""Prefetching keeps order, hands errors on and stops when nobody listens."""

from __future__ import annotations

import threading

import pytest
from labelmesh.trainers.batches import prefetch


def test_order_is_kept() -> None:
    assert list(prefetch(lambda i: i * i, range(100), depth=3)) == [i * i for i in range(100)]


def test_error_comes_where_its_result_would_have() -> None:
    results = prefetch(lambda i: 1 / (2 - i), range(5), depth=2)
    assert [next(results), next(results)] == [0.5, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_error_of_the_items_themselves_is_raised() -> None:
    def items() -> object:
        yield 1
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        list(prefetch(lambda i: i, items(), depth=2))  # type: ignore[arg-type]


def test_leaving_early_ends_the_thread() -> None:
    before = threading.active_count()
    results = prefetch(lambda i: i, iter(int, 1), depth=2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_no_more_than_depth_is_computed_ahead() -> None:
    started = 0

    def count(i: int) -> int:
        nonlocal started
        started += 1
        return i

    results = prefetch(count, range(50), depth=2)
    next(results)
    results.close()  # type: ignore[attr-defined]
    # One taken, two waiting, one that found no room, and the one computed while that room opened.
    assert started <= 5
