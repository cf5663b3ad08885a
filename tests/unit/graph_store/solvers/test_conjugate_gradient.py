"""Conjugate gradients against dense solves."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.graph_store.solvers.conjugate_gradient import conjugate_gradient
from torch import Tensor


def system(size: int, seed: int = 0, shift: float = 1.0) -> tuple[Tensor, Tensor]:
    """A positive definite matrix and five right-hand sides."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(size, size, generator=generator, dtype=torch.float64)
    b = torch.randn(size, 5, generator=generator, dtype=torch.float64)
    return a @ a.T + shift * torch.eye(size, dtype=torch.float64), b


def same(x: Tensor) -> Tensor:
    return x


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 30), st.integers(0, 1000), st.booleans())
def test_solution_equals_dense_solve(size: int, seed: int, use_diagonal: bool) -> None:
    a, b = system(size, seed)
    inverse = 1 / a.diagonal() if use_diagonal else None
    result = conjugate_gradient(
        lambda f: a @ f, b, all_sum=same, inverse_diagonal=inverse, tol=1e-13
    )
    exact = torch.linalg.solve(a, b)
    torch.testing.assert_close(
        result.solution, exact, rtol=0, atol=1e-10 * float(exact.abs().max())
    )
    assert result.converged.all()
    assert (result.residuals <= 1e-13).all()


def test_converged_columns_leave_the_products() -> None:
    a = torch.diag(torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    b = torch.ones(4, 2, dtype=torch.float64)
    b[1:, 0] = 0  # an eigenvector, solved in one step
    widths = []

    def apply(f: Tensor) -> Tensor:
        widths.append(f.shape[1])
        return a @ f

    result = conjugate_gradient(apply, b, all_sum=same, tol=1e-12)
    assert widths == [2, 1, 1, 1]
    torch.testing.assert_close(result.solution, torch.linalg.solve(a, b))


def test_each_column_is_solved_as_if_alone() -> None:
    a, b = system(25)
    together = conjugate_gradient(lambda f: a @ f, b, all_sum=same, tol=1e-12).solution
    for c in range(5):
        alone = conjugate_gradient(lambda f: a @ f, b[:, c : c + 1], all_sum=same, tol=1e-12)
        torch.testing.assert_close(alone.solution[:, 0], together[:, c], rtol=1e-10, atol=1e-12)


def test_warm_start_at_the_solution_needs_no_iteration() -> None:
    a, b = system(20)
    exact = torch.linalg.solve(a, b)
    result = conjugate_gradient(lambda f: a @ f, b, all_sum=same, x0=exact, tol=1e-8)
    assert result.iterations == 0
    assert torch.equal(result.solution, exact)


def test_warm_start_ends_at_the_same_solution() -> None:
    a, b = system(20)
    start = torch.ones_like(b)
    result = conjugate_gradient(lambda f: a @ f, b, all_sum=same, x0=start, tol=1e-13)
    torch.testing.assert_close(result.solution, torch.linalg.solve(a, b), rtol=1e-9, atol=1e-10)
    assert (start == 1).all()


def test_zero_columns_have_zero_solutions() -> None:
    a, b = system(10)
    b[:, 2] = 0
    result = conjugate_gradient(lambda f: a @ f, b, all_sum=same, x0=torch.ones_like(b), tol=1e-12)
    assert (result.solution[:, 2] == 0).all()
    assert result.residuals[2] == 0
    assert result.converged.all()


def test_max_iter_is_kept_and_reported() -> None:
    a, b = system(30, shift=1e-3)
    result = conjugate_gradient(lambda f: a @ f, b, all_sum=same, tol=1e-12, max_iter=3)
    assert result.iterations == 3
    assert not result.converged.any()
    residual = (b - a @ result.solution).norm(dim=0) / b.norm(dim=0)
    torch.testing.assert_close(result.residuals, residual, rtol=1e-8, atol=0)
    with pytest.raises(ValueError, match="no convergence in 3 iterations"):
        result.require_converged()


def test_singular_system_is_solved_within_its_range() -> None:
    a, b = system(12)
    values, vectors = torch.linalg.eigh(a)
    values[:3] = 0
    singular = vectors * values @ vectors.T
    b = singular @ b
    result = conjugate_gradient(lambda f: singular @ f, b, all_sum=same, tol=1e-12)
    expected = torch.linalg.pinv(singular, hermitian=True) @ b
    torch.testing.assert_close(result.solution, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize(("tol", "max_iter"), [(0.0, 5), (float("nan"), 5), (1e-3, -1)])
def test_limits_are_checked(tol: float, max_iter: int) -> None:
    a, b = system(3)
    with pytest.raises(ValueError, match="tol must be > 0 and max_iter >= 0"):
        conjugate_gradient(lambda f: a @ f, b, all_sum=same, tol=tol, max_iter=max_iter)
