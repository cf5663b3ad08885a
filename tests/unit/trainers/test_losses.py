"""Losses against hand-worked numbers and finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.trainers.losses import (
    consistency,
    entropy_and_balance,
    mix,
    mixup_pairs,
    soft_cross_entropy,
)


def _rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_cross_entropy_of_two_rows_by_hand() -> None:
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    expected = (-math.log(0.75) + math.log(2)) / 2
    assert soft_cross_entropy(logits, targets).item() == pytest.approx(expected, rel=1e-6)


def test_weights_do_not_change_the_number_of_rows() -> None:
    logits = torch.zeros(4, 2)
    targets = torch.tensor([[1.0, 0.0]]).repeat(4, 1)
    weight = torch.tensor([1.0, 0.0, 0.5, 0.0])
    assert soft_cross_entropy(logits, targets, weight).item() == pytest.approx(
        1.5 * math.log(2) / 4, rel=1e-6
    )


def test_no_rows_cost_nothing_and_keep_a_gradient() -> None:
    logits = torch.zeros(0, 3, requires_grad=True)
    loss = soft_cross_entropy(logits, torch.zeros(0, 3))
    loss.backward()
    assert loss.item() == 0


def test_hard_targets_equal_torch() -> None:
    logits = torch.randn(7, 5, generator=_rng())
    labels = torch.randint(5, (7,), generator=_rng(1))
    targets = torch.nn.functional.one_hot(labels, 5).float()
    expected = torch.nn.functional.cross_entropy(logits, labels)
    torch.testing.assert_close(soft_cross_entropy(logits, targets), expected)


def test_regulariser_of_two_rows_by_hand() -> None:
    # rows (3/4, 1/4) and (1/4, 3/4): mean (1/2, 1/2)
    logits = torch.tensor([[math.log(3.0), 0.0], [0.0, math.log(3.0)]], dtype=torch.float64)
    entropy, balance = entropy_and_balance(logits)
    assert entropy.item() == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert balance.item() == pytest.approx(math.log(2))


def test_balance_of_a_skewed_batch_by_hand() -> None:
    logits = torch.tensor([[math.log(4.0), 0.0]] * 3, dtype=torch.float64)
    _, balance = entropy_and_balance(logits)
    assert balance.item() == pytest.approx(-(math.log(0.8) + math.log(0.2)) / 2)


def test_regulariser_survives_certain_predictions() -> None:
    logits = torch.tensor([[200.0, -200.0]], requires_grad=True)
    entropy, balance = entropy_and_balance(logits)
    (entropy + balance).backward()
    assert entropy.item() == pytest.approx(0, abs=1e-12)
    assert balance.item() == pytest.approx(200.0)
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_regulariser_of_no_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="0 rows"):
        entropy_and_balance(torch.zeros(0, 3))


@pytest.mark.parametrize("term", [0, 1])
def test_regulariser_gradient_equals_finite_differences(term: int) -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, generator=_rng(), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: entropy_and_balance(x)[term], (logits,))


def test_cross_entropy_gradient_equals_finite_differences() -> None:
    logits = torch.randn(4, 3, dtype=torch.float64, generator=_rng(), requires_grad=True)
    targets = torch.rand(4, 3, dtype=torch.float64, generator=_rng(1))
    weight = torch.rand(4, dtype=torch.float64, generator=_rng(2))
    assert torch.autograd.gradcheck(lambda x: soft_cross_entropy(x, targets, weight), (logits,))


def test_half_precision_logits_are_widened() -> None:
    logits = torch.randn(4, 3, generator=_rng()).bfloat16()
    assert soft_cross_entropy(logits, torch.ones(4, 3)).dtype == torch.float32


def test_consistency_counts_only_confident_rows() -> None:
    weak = torch.tensor([[math.log(9.0), 0.0], [math.log(2.0), 0.0]], requires_grad=True)
    strong = torch.zeros(2, 2, requires_grad=True)
    loss, passed = consistency(strong, weak, threshold=0.9)
    assert passed.tolist() == [True, False]
    assert loss.item() == pytest.approx(math.log(2) / 2, rel=1e-6)
    loss.backward()
    assert weak.grad is None
    torch.testing.assert_close(strong.grad, torch.tensor([[-0.25, 0.25], [0.0, 0.0]]))


def test_mixup_is_a_function_of_the_generator() -> None:
    state = torch.random.get_rng_state()
    first, second = mixup_pairs(16, 0.5, _rng(3)), mixup_pairs(16, 0.5, _rng(3))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[1], mixup_pairs(16, 0.5, _rng(4))[1])
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_shares_have_the_moments_of_beta(alpha: float) -> None:
    partner, share = mixup_pairs(20_000, alpha, _rng())
    assert partner.sort().values.tolist() == list(range(20_000))
    assert share.mean().item() == pytest.approx(0.5, abs=0.01)
    assert share.var().item() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)


def test_mixup_of_zero_leaves_rows_alone() -> None:
    x = torch.randn(5, 2, generator=_rng())
    assert torch.equal(mix(x, *mixup_pairs(5, 0.0, _rng())), x)


@settings(max_examples=20, deadline=None)
@given(b=st.integers(1, 9), seed=st.integers(0, 100))
def test_mixed_rows_lie_between_their_parents(b: int, seed: int) -> None:
    x = torch.randn(b, 2, 3, generator=_rng(seed), dtype=torch.float64)
    partner, share = mixup_pairs(b, 1.0, _rng(seed))
    weight = share.double()[:, None, None]
    expected = weight * x + (1 - weight) * x[partner]
    torch.testing.assert_close(mix(x, partner, share), expected)
