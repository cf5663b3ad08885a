"""Attacks against closed forms on linear models, and their bounds."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.trainers.attacks import carlini_wagner, cross_entropy_of, fgsm, ifgsm, pgd
from torch import Tensor

WEIGHT = torch.tensor([[1.0, -2.0, 0.5], [0.5, 1.0, -1.0]])


def linear(x: Tensor) -> Tensor:
    return x.flatten(1) @ WEIGHT.T.to(x)


def images(b: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(b, 3, generator=torch.Generator().manual_seed(seed)) - 1


def test_fgsm_moves_along_the_sign_of_the_weights() -> None:
    x, labels = torch.zeros(2, 3), torch.tensor([0, 1])
    made = fgsm(cross_entropy_of(linear, labels), x, eps=0.25)
    # the loss of two classes grows along the other class's weights minus the own class's
    away = torch.stack([WEIGHT[1] - WEIGHT[0], WEIGHT[0] - WEIGHT[1]]).sign()
    torch.testing.assert_close(made.inputs, 0.25 * away)
    assert not made.masked.any()


def test_fgsm_is_clipped_to_the_bounds() -> None:
    x = torch.tensor([[0.9, -0.95, 0.0]])
    made = fgsm(cross_entropy_of(linear, torch.tensor([1])), x, eps=0.2, low=-1.0, high=1.0)
    torch.testing.assert_close(made.inputs, torch.tensor([[1.0, -1.0, 0.2]]))


def test_rows_without_gradient_are_counted_and_stay() -> None:
    def dead_for_positive(x: Tensor) -> Tensor:
        return linear(x.clamp(max=0))

    x = torch.tensor([[0.5, 0.5, 0.5], [-0.5, -0.5, -0.5]])
    loss = cross_entropy_of(dead_for_positive, torch.tensor([0, 0]))
    for made in (fgsm(loss, x, eps=0.1), ifgsm(loss, x, eps=0.1)):
        assert made.masked.tolist() == [True, False]
        assert torch.equal(made.inputs[0], x[0])


def test_ifgsm_reaches_the_corner_of_the_ball_on_a_linear_model() -> None:
    x, labels = torch.zeros(1, 3), torch.tensor([0])
    made = ifgsm(cross_entropy_of(linear, labels), x, eps=0.3, step_size=0.07)
    torch.testing.assert_close(made.inputs[0], 0.3 * (WEIGHT[1] - WEIGHT[0]).sign())


def test_ifgsm_takes_as_many_steps_as_it_says() -> None:
    calls = 0

    def loss(x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return x.sum()

    ifgsm(loss, torch.zeros(1, 2), eps=0.3, step_size=0.05)
    assert calls == 30
    ifgsm(loss, torch.zeros(1, 2), eps=0.3, steps=4)
    assert calls == 34


@settings(max_examples=30, deadline=None)
@given(
    eps=st.floats(0, 2),
    step_size=st.floats(0.01, 1),
    seed=st.integers(0, 1000),
    random_start=st.booleans(),
)
def test_results_stay_in_the_ball_and_in_the_bounds(
    eps: float, step_size: float, seed: int, random_start: bool
) -> None:
    x = images(4, seed)
    loss = cross_entropy_of(linear, torch.arange(4) % 2)
    if random_start:
        generator = torch.Generator().manual_seed(seed)
        made = pgd(
            loss, x, eps=eps, step_size=step_size, steps=3, generator=generator, low=-1.0, high=1.0
        )
    else:
        made = ifgsm(loss, x, eps=eps, step_size=step_size, steps=3, low=-1.0, high=1.0)
    assert float((made.inputs - x).abs().max()) <= eps + 1e-6
    assert float(made.inputs.abs().max()) <= 1


def test_pgd_is_a_function_of_its_generator() -> None:
    x, loss = images(4), cross_entropy_of(linear, torch.arange(4) % 2)
    state = torch.random.get_rng_state()

    def run(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return pgd(loss, x, eps=0.5, step_size=0.01, steps=2, generator=generator).inputs

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))
    assert torch.equal(state, torch.random.get_rng_state())


def test_attacks_leave_parameters_without_gradients() -> None:
    net = torch.nn.Linear(3, 2)
    fgsm(cross_entropy_of(net, torch.tensor([0])), torch.zeros(1, 3), eps=0.1)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_carlini_wagner_finds_the_distance_to_a_plane(dtype: torch.dtype) -> None:
    normal = torch.tensor([3.0, -1.0, 2.0], dtype=dtype) / math.sqrt(14)

    def plane(x: Tensor) -> Tensor:
        height = x @ normal
        return torch.stack([height, -height], dim=1)

    x = 0.4 * images(8, seed=3).to(dtype)
    height = x @ normal
    made = carlini_wagner(
        plane, x, (height < 0).long(), low=-1.0, high=1.0, searches=7, steps=120, lr=0.03
    )
    moved = (made.inputs - x).norm(dim=1)
    torch.testing.assert_close(moved, height.abs(), rtol=0.03, atol=2e-3)
    assert (plane(made.inputs).argmax(1) != (height < 0)).all()


def test_carlini_wagner_aims_at_the_second_most_probable_class() -> None:
    corners = torch.tensor([[1.0, 0.0], [-0.2, 1.0], [-1.0, -1.0]])

    def three(x: Tensor) -> Tensor:
        return 5 * x @ corners.T

    x = torch.tensor([[0.5, 0.1]])
    assert three(x).topk(2).indices.tolist() == [[0, 1]]
    made = carlini_wagner(
        three, x, torch.tensor([0]), low=-1.0, high=1.0, searches=2, steps=80, lr=0.05
    )
    assert three(made.inputs).argmax(1).tolist() == [1]


def test_carlini_wagner_leaves_wrong_and_unmovable_rows_alone() -> None:
    def stubborn(x: Tensor) -> Tensor:
        return torch.stack([10 + 0 * x[:, 0], x[:, 0]], dim=1)

    x = torch.tensor([[0.3], [0.4]])
    made = carlini_wagner(
        stubborn, x, torch.tensor([0, 1]), low=-1.0, high=1.0, searches=2, steps=20
    )
    assert torch.equal(made.inputs, x)


def test_carlini_wagner_stays_in_range_from_its_edge() -> None:
    x = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0]])
    labels = linear(x).argmax(1)
    made = carlini_wagner(linear, x, labels, low=-1.0, high=1.0, steps=120, lr=0.1, searches=3)
    assert float(made.inputs.abs().max()) <= 1
    assert (linear(made.inputs).argmax(1) != labels).all()


def test_one_weight_without_search_may_fail_where_it_is_small() -> None:
    x = torch.tensor([[0.8, -0.8, 0.3]])
    options = {"low": -1.0, "high": 1.0, "steps": 100, "lr": 0.1, "searches": 1}
    weak = carlini_wagner(linear, x, torch.tensor([0]), weights=(1e-3, 1e-3), **options)
    strong = carlini_wagner(linear, x, torch.tensor([0]), weights=(100.0, 100.0), **options)
    assert torch.equal(weak.inputs, x)
    assert linear(strong.inputs).argmax(1).tolist() == [1]


def test_bad_options_are_refused() -> None:
    x, labels = torch.zeros(1, 3), torch.tensor([0])
    loss = cross_entropy_of(linear, labels)
    with pytest.raises(ValueError, match=r"eps = -1.0: must be >= 0"):
        fgsm(loss, x, eps=-1.0)
    with pytest.raises(ValueError, match=r"outside of low = 0\.5 and high = 1"):
        fgsm(loss, x, eps=0.1, low=0.5, high=1.0)
    with pytest.raises(ValueError, match="steps = 0"):
        ifgsm(loss, x, eps=0.1, steps=0)
    with pytest.raises(ValueError, match="finite bounds"):
        carlini_wagner(linear, x, labels, low=-math.inf, high=math.inf)
    with pytest.raises(ValueError, match=r"weights = \(5.0, 1.0\)"):
        carlini_wagner(linear, x, labels, low=-1.0, high=1.0, weights=(5.0, 1.0))
    with pytest.raises(ValueError, match="second most probable"):
        carlini_wagner(lambda t: t[:, :1], x, labels, low=-1.0, high=1.0)
