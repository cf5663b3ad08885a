"""FreeMatch's thresholds, fairness and loss by hand; with fixed statistics it is FixMatch."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from labelmesh.trainers.method import Batch, Loss
from labelmesh.trainers.methods.fixmatch import FixMatch
from labelmesh.trainers.methods.freematch import (
    FreeMatch,
    class_thresholds,
    own_statistics,
    self_adaptive_fairness,
)
from torch import Tensor, nn

WEAK = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.55, 0.45], [0.4, 0.6]])
STRONG = torch.tensor([[0.5, 0.5], [0.25, 0.75], [0.2, 0.8], [0.3, 0.7]])
RUNNING = {
    "confidence": torch.tensor(0.7),
    "prediction": torch.tensor([0.8, 0.2]),
    "histogram": torch.tensor([0.75, 0.25]),
}


def _loss(
    method: FreeMatch | FixMatch,
    labels: list[int],
    statistics: dict[str, Tensor] | None = None,
    views: dict[str, Tensor] | None = None,
) -> Loss:
    """Row 0 is the labeled one; the network's logits are its inputs, so its outputs the views."""
    inputs = {"weak": WEAK.log(), "strong": STRONG.log()} if views is None else views

    def view(name: str, rows: Tensor | None = None) -> Tensor:
        return inputs[name] if rows is None else inputs[name][rows]

    net = method.build(nn.Identity(), 2, 2)
    with torch.no_grad():
        for name, value in net.named_parameters():
            value.copy_(torch.eye(2) if name.endswith("weight") else torch.zeros(2))
    given, generator = torch.tensor(labels), torch.Generator()
    ids = torch.arange(len(labels))
    running = RUNNING if statistics is None else statistics
    batch = Batch("mixed", ids, given, None, None, view, generator, statistics=running)
    return method.loss(net, batch)


def test_loss_by_hand() -> None:
    loss = _loss(FreeMatch(decay=0.75, unlabeled_weight=2.0, fairness_weight=0.5), [0, -1, -1, -1])
    # eqs. 5, 6 and 10: a quarter of the way from the running values to the batch's
    tau = 0.75 * 0.7 + 0.25 * (0.9 + 0.55 + 0.6) / 3
    p = [0.75 * 0.8 + 0.25 * (0.9 + 0.55 + 0.4) / 3, 0.75 * 0.2 + 0.25 * (0.1 + 0.45 + 0.6) / 3]
    h = [0.75 * 0.75 + 0.25 * 2 / 3, 0.75 * 0.25 + 0.25 / 3]
    # eq. 7: 0.696 for class 0 and 0.228 for class 1, so that the second unlabeled row drops out
    assert 0.55 < tau < 0.9
    assert tau * p[1] / p[0] < 0.6
    consistency = (-math.log(0.25) - math.log(0.7)) / 3
    # eqs. 9 and 11: of both used strong views argmax is 1; class 0 has share 0 and ratio 0
    ratio = [p[0] / h[0], p[1] / h[1]]
    wanted = [r / sum(ratio) for r in ratio]
    fairness = wanted[0] * math.log(1e-12) + wanted[1] * math.log(1.0)
    assert loss.parts["threshold"].item() == pytest.approx(tau, rel=1e-6)
    assert loss.parts["passed"].item() == pytest.approx(2 / 3)
    assert loss.parts["consistency"].item() == pytest.approx(consistency, rel=1e-6)
    assert loss.parts["fairness"].item() == pytest.approx(fairness, rel=1e-5)
    total = math.log(2) + 2.0 * consistency + 0.5 * fairness
    assert loss.total.item() == pytest.approx(total, rel=1e-5)


def test_statistics_are_the_micro_batchs_own() -> None:
    own = _loss(FreeMatch(), [0, -1, -1, -1]).statistics
    assert own["confidence"].item() == pytest.approx((0.9 + 0.55 + 0.6) / 3)
    assert own["prediction"].tolist() == pytest.approx([1.85 / 3, 1.15 / 3])
    assert own["histogram"].tolist() == pytest.approx([2 / 3, 1 / 3])


def test_statistics_start_at_one_in_c() -> None:
    start = FreeMatch().statistics(4)
    assert start["confidence"].item() == 0.25
    assert start["prediction"].tolist() == start["histogram"].tolist() == [0.25] * 4
    assert class_thresholds(start["confidence"], start["prediction"]).tolist() == [0.25] * 4
    assert FreeMatch(decay=0.9).statistics_decay == 0.9


def test_every_row_is_used_in_the_first_step() -> None:
    loss = _loss(FreeMatch(), [0, -1, -1, -1], FreeMatch().statistics(2))
    assert loss.parts["passed"].item() == 1
    assert loss.parts["threshold"].item() == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("threshold", [0.5, 0.58, 0.7, 0.95])
def test_fixed_uniform_statistics_give_fixmatch(threshold: float) -> None:
    fixed = {
        "confidence": torch.tensor(threshold),
        "prediction": torch.full((2,), 0.5),
        "histogram": torch.full((2,), 0.5),
    }
    free = _loss(FreeMatch(decay=1 - 1e-9, fairness_weight=0.0), [0, -1, -1, -1], fixed)
    fix = _loss(FixMatch(threshold=threshold), [0, -1, -1, -1])
    assert free.total.item() == fix.total.item()
    assert free.parts["passed"].item() == fix.parts["passed"].item()


def test_labeled_batch_costs_the_supervised_loss_and_keeps_the_statistics() -> None:
    loss = _loss(FreeMatch(), [0, 0, 1, 1])
    expected = -sum(math.log(p) for p in (0.5, 0.9, 0.45, 0.6)) / 4
    assert loss.total.item() == pytest.approx(expected, rel=1e-6)
    assert all(torch.equal(loss.statistics[name], value) for name, value in RUNNING.items())


def test_gradients_flow_through_labeled_and_used_strong_rows_only() -> None:
    views = {"weak": WEAK.log().requires_grad_(), "strong": STRONG.log().requires_grad_()}
    _loss(FreeMatch(decay=0.75), [0, -1, -1, -1], views=views).total.backward()
    reached = {name: x.grad.abs().sum(1) > 0 for name, x in views.items() if x.grad is not None}
    assert reached["weak"].tolist() == [True, False, False, False]
    assert reached["strong"].tolist() == [False, True, False, True]


def test_fairness_by_hand() -> None:
    """p- = (0.6, 0.25, 0.15) over h- = (2/3, 1/3, 0): ratios 0.9, 0.75 and none."""
    strong = torch.tensor([[0.8, 0.1, 0.1], [0.8, 0.1, 0.1], [0.2, 0.55, 0.25], [0.1, 0.1, 0.8]])
    used = torch.tensor([True, True, True, False])
    running = {
        "prediction": torch.tensor([0.5, 0.3, 0.2]),
        "histogram": torch.tensor([0.5, 0.5, 0.0]),
    }
    loss = self_adaptive_fairness(strong.log(), used, running)
    wanted, found = [1 / 1.6, 0.6 / 1.6], [0.9 / 1.65, 0.75 / 1.65]
    expected = wanted[0] * math.log(found[0]) + wanted[1] * math.log(found[1])
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_fairness_of_no_rows_is_zero() -> None:
    logits = STRONG.log().requires_grad_()
    loss = self_adaptive_fairness(logits, torch.zeros(4, dtype=torch.bool), RUNNING)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


@given(st.integers(2, 6), st.integers(1, 20), st.integers(0, 2**16))
def test_thresholds_are_ordered_as_frequencies(c: int, b: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    own = own_statistics((4 * torch.randn(b, c, generator=rng)).softmax(1))
    tau = class_thresholds(own["confidence"], own["prediction"])
    assert 1 / c - 1e-6 <= own["confidence"].item() <= 1 + 1e-6
    assert tau.max().item() == pytest.approx(own["confidence"].item())
    assert (tau > 0).all()
    assert (tau[own["prediction"].argsort()].diff() >= 0).all()
    assert own["prediction"].sum().item() == pytest.approx(1, abs=1e-5)
    assert own["histogram"].sum().item() == pytest.approx(1, abs=1e-5)
