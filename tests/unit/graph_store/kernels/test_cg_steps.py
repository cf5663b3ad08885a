"""Fused vector passes against the formulas."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from labelmesh.graph_store.kernels.cg_steps import Steps, even_segments
from torch import Tensor

N, C = 3000, 3


def randn(*shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def steps() -> Steps:
    """Three coarse vectors, one of them on no row, and rows without one."""
    segments = torch.tensor([0, 700, 700, 1900, 2500, N])
    return Steps(segments, randn(N, seed=1).abs(), randn(N, seed=2), 3)


def restrict(steps: Steps, r: Tensor) -> Tensor:
    bounds = steps.segments[: steps.num_coarse + 1].tolist()
    weighted = steps.basis[:, None] * r
    return torch.stack([weighted[a:b].sum(0) for a, b in pairwise(bounds)])


def test_dot(steps: Steps) -> None:
    p, q = randn(N, C, seed=3), randn(N, C, seed=4)
    torch.testing.assert_close(steps.dot(p, q), (p * q).sum(0))


def test_advance_moves_both_and_sums(steps: Steps) -> None:
    x, r, p, q = (randn(N, C, seed=seed) for seed in range(4))
    alpha = randn(C, seed=5)
    x_new, r_new = x + alpha * p, r - alpha * q
    sums = steps.advance(x, r, p, q, alpha)
    torch.testing.assert_close(x, x_new)
    torch.testing.assert_close(r, r_new)
    torch.testing.assert_close(sums[0], r_new.square().sum(0))
    torch.testing.assert_close(sums[1], (steps.diagonal[:, None] * r_new.square()).sum(0))
    torch.testing.assert_close(sums[2:], restrict(steps, r_new))


def test_turn_adds_both_levels(steps: Steps) -> None:
    p, r, coarse, beta = (
        randn(N, C, seed=1),
        randn(N, C, seed=2),
        randn(3, C, seed=3),
        randn(C, seed=4),
    )
    lifted = torch.zeros(N, C, dtype=torch.float64)
    lifted[:700], lifted[700:1900] = coarse[0], coarse[2]
    expected = steps.diagonal[:, None] * r + steps.basis[:, None] * lifted + beta * p
    steps.turn(p, r, coarse, beta)
    torch.testing.assert_close(p, expected)


def test_bits_do_not_depend_on_threads(steps: Steps) -> None:
    wide = 400  # enough work for several threads
    p, q = randn(N, wide, seed=3), randn(N, wide, seed=4)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            x, r = randn(N, wide, seed=5), randn(N, wide, seed=6)
            sums = steps.advance(x, r, p, q, torch.ones(wide, dtype=torch.float64))
            found.append((steps.dot(p, q), sums, x, r))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other))


@pytest.mark.parametrize("num_rows", [0, 1, 1024, 1025])
def test_even_segments_cover_all_rows(num_rows: int) -> None:
    segments = even_segments(num_rows, torch.device("cpu"))
    assert segments[0] == 0
    assert segments[-1] == num_rows
    assert (segments.diff() > 0).all()
