"""The motion that rows have in common."""

from __future__ import annotations

import pytest
import torch
from labelmesh.graph_store.motion import Motion, common_motion, residuals
from scipy.linalg import orthogonal_procrustes
from torch import Tensor

N, D = 60, 5


def rows(seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(N, D, generator=g, dtype=torch.float64)


def rotation() -> Tensor:
    return torch.linalg.qr(rows(3)[:D])[0]


@pytest.mark.parametrize("keep_scale", [False, True])
def test_a_similarity_map_is_found(keep_scale: bool) -> None:
    stretch = 1.0 if keep_scale else 2.5
    before, q, shift = rows(), rotation(), rows(4)[0]
    after = stretch * before @ q.T + shift
    found = common_motion(before, after, keep_scale=keep_scale)
    assert found is not None
    assert found.stretch == pytest.approx(stretch)
    torch.testing.assert_close(found.rotation, q)
    torch.testing.assert_close(found.apply(before), after)
    torch.testing.assert_close(found.undo(after), before)


def test_rotation_and_stretch_are_those_of_scipy() -> None:
    before, after = rows(1), rows(2) + 0.7 * rows(1)
    found = common_motion(before, after, keep_scale=False)
    assert found is not None
    a, b = before - before.mean(0), after - after.mean(0)
    q, values = orthogonal_procrustes(a.numpy(), b.numpy())
    torch.testing.assert_close(found.rotation, torch.from_numpy(q.T))
    assert found.stretch == pytest.approx(values / float(a.square().sum()))


def test_no_other_map_leaves_less() -> None:
    before, after = rows(1), rows(1) @ rotation() + 0.3 * rows(2)
    best = common_motion(before, after, keep_scale=False)
    assert best is not None
    left = (after - best.apply(before)).square().sum()
    for seed in range(5):
        angle = 0.05 * rows(seed)[:D]
        other = torch.matrix_exp(angle - angle.T) @ best.rotation
        tried = Motion(best.stretch * 1.01, other, best.shift)
        assert (after - tried.apply(before)).square().sum() > left


def test_it_preserves_distances_up_to_the_stretch() -> None:
    before = rows(1)
    found = common_motion(before, rows(2), keep_scale=False)
    assert found is not None
    wanted = found.stretch * torch.pdist(before)
    torch.testing.assert_close(torch.pdist(found.apply(before)), wanted, rtol=1e-12, atol=0)


def test_rows_may_be_split() -> None:
    before, after = rows(1), rows(2)
    parts: list[Tensor] = []

    def record(x: Tensor) -> Tensor:
        parts.append(x.clone())
        return x

    whole = common_motion(before, after, keep_scale=False, all_sum=record)
    sums = iter(parts)
    # Every sum over one part is replaced by that over all: as on another shard.
    part = common_motion(before[:7], after[:7], keep_scale=False, all_sum=lambda _: next(sums))
    assert whole is not None
    assert part is not None
    assert torch.equal(whole.rotation, part.rotation)
    assert whole.stretch == part.stretch


@pytest.mark.parametrize("count", [0, 1, 10])
def test_rows_that_define_no_motion(count: int) -> None:
    assert common_motion(rows()[:1].repeat(count, 1), rows(1)[:count], keep_scale=False) is None
    assert common_motion(rows()[:count], rows()[:1].repeat(count, 1), keep_scale=False) is None


def test_residuals_are_never_too_small() -> None:
    """In exact arithmetic, by numbers that float64 cannot hold in one."""
    g = torch.Generator().manual_seed(0)
    q, shift = rotation(), torch.zeros(D, dtype=torch.float64)
    center = torch.full((D,), 0.75)
    reference = torch.randn(N, D, generator=g)
    for stretch in (1.0, 1e-9, 1e-15):
        motion = Motion(stretch, q, shift - 0.75)
        moved = stretch * (reference.double() @ q.T)
        at = (moved + 0.1 * stretch * torch.randn(N, D, generator=g, dtype=torch.float64)).float()
        # Without the shift that cancels the center, nothing is lost.
        wanted = torch.linalg.vector_norm(at.double() - moved, dim=1)
        found = residuals(motion, reference, at, 1.0, center)
        assert (found >= wanted).all()
        assert (found <= wanted + 1e-13).all()
