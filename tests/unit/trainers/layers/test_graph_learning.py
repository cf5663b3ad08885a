"""The layer against dense float64 systems, finite differences, and what must always hold."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.trainers.layers.graph_learning import GraphLearningLayer
from labelmesh.trainers.layers.graph_learning_checks import check_batch
from torch import Tensor, nn

F64 = torch.float64


def _batch(
    n: int = 60, d: int = 5, classes: int = 3, base: int = 12, seed: int = 0, dtype: Any = F64
) -> tuple[Tensor, Tensor]:
    """Random features; `base` rows in random places have labels."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=rng, dtype=dtype)
    labels = torch.full((n,), -1)
    labels[torch.randperm(n, generator=rng)[:base]] = torch.arange(base) % classes
    return x, labels


def _dense_weights(x: Tensor, k: int, bandwidth: Any = "self_tuning") -> Tensor:
    """Step 1 and 2 of the method with n x n matrices, by ordinary operations."""
    squared = (x[:, None] - x[None]).square().sum(2)
    order = squared.detach().clone().fill_diagonal_(torch.inf).sort(dim=1, stable=True).indices
    near = torch.zeros(squared.shape, dtype=torch.bool).scatter_(1, order[:, :k], True)
    if bandwidth == "self_tuning":
        eps = squared.gather(1, order[:, k - 1 : k])[:, 0].clamp(min=1e-20).sqrt()
        scale = eps[:, None] * eps[None]
    else:
        scale = torch.tensor(float(bandwidth) ** 2, dtype=x.dtype)
    return torch.where(near | near.T, torch.exp(-4 * squared / scale), 0.0)


def _dense(
    x: Tensor,
    labels: Tensor,
    k: int,
    tau: Any = 0.0,
    bandwidth: Any = "self_tuning",
    base_probs: Tensor | None = None,
) -> Tensor:
    w = _dense_weights(x, k, bandwidth)
    base = labels >= 0
    y = nn.functional.one_hot(labels[base]).to(x.dtype) if base_probs is None else base_probs
    system = torch.diag(w.sum(1) + tau) - w
    solution: Tensor = torch.linalg.solve(system[~base][:, ~base], w[~base][:, base] @ y)
    return solution


@pytest.mark.parametrize("bandwidth", ["self_tuning", 1.5])
@pytest.mark.parametrize("tau", [0.0, 0.3])
def test_probabilities_and_gradient_equal_a_dense_solve(bandwidth: Any, tau: float) -> None:
    x, labels = _batch()
    layer = GraphLearningLayer(6, tau, bandwidth)
    v = torch.randn(48, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    results = []
    for solve in (layer, lambda x, labels: _dense(x, labels, 6, tau, bandwidth)):
        leaf = x.clone().requires_grad_()
        probs = solve(leaf, labels)
        results.append((probs, *torch.autograd.grad((probs * v).sum(), leaf)))
    for ours, dense in zip(*results):
        torch.testing.assert_close(ours, dense, rtol=1e-9, atol=1e-10)


def test_gradients_of_base_labels_and_tau_equal_a_dense_solve() -> None:
    x, labels = _batch()
    rng = torch.Generator().manual_seed(2)
    y = torch.rand(12, 4, generator=rng, dtype=F64).requires_grad_()
    v = torch.randn(48, 4, generator=rng, dtype=F64)
    tau = nn.Parameter(torch.tensor(0.2, dtype=F64))
    layer = GraphLearningLayer(6, tau)
    assert list(layer.parameters()) == [tau]
    ours = torch.autograd.grad((layer(x, labels, base_probs=y) * v).sum(), (y, tau))
    dense = torch.autograd.grad((_dense(x, labels, 6, tau, base_probs=y) * v).sum(), (y, tau))
    for a, b in zip(ours, dense):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("p", [2.0, 3.0, 4.5])
@pytest.mark.parametrize("tau", [0.0, 0.1])
@pytest.mark.parametrize("bandwidth", ["self_tuning", 1.5])
def test_gradients_equal_central_differences(p: float, tau: float, bandwidth: Any) -> None:
    x, labels = _batch()
    rng = torch.Generator().manual_seed(3)
    y = torch.rand(12, 3, generator=rng, dtype=F64)
    v = torch.randn(48, 3, generator=rng, dtype=F64)

    def objective(x: Tensor, y: Tensor, tau: Tensor) -> Tensor:
        probs: Tensor = GraphLearningLayer(6, tau, bandwidth, p)(x, labels, base_probs=y)
        return (probs * v).sum()

    arguments = [x, y, torch.tensor(tau, dtype=F64)]
    leaves = [part.clone().requires_grad_() for part in arguments]
    gradients = torch.autograd.grad(objective(*leaves), leaves)
    for which in range(3 if tau > 0 else 2):
        direction = torch.randn(arguments[which].shape, generator=rng, dtype=F64)

        def moved(h: float, which: int = which, direction: Tensor = direction) -> Tensor:
            return objective(
                *(part + h * direction if i == which else part for i, part in enumerate(arguments))
            )

        # Fourth order, and so short that neighbours and signs of differences stay.
        h = 1e-5 if which < 2 else 1e-4
        difference = 8 * (moved(h) - moved(-h)) - (moved(2 * h) - moved(-2 * h))
        expected = (gradients[which] * direction).sum()
        torch.testing.assert_close(difference / (12 * h), expected, rtol=1e-6, atol=1e-7)


def test_the_p_laplacian_vanishes_at_the_solution() -> None:
    x, labels = _batch()
    probs = GraphLearningLayer(6, p=3.0)(x, labels)
    u = nn.functional.one_hot(labels.clamp(min=0), 3).to(F64)
    u[labels < 0] = probs
    w, difference = _dense_weights(x, 6), u[:, None] - u[None]
    flow = (w[:, :, None] * difference.abs() * difference).sum(1)
    # Up to the layer's own 1e-6 of the Laplacian.
    assert flow[labels < 0].abs().max() < 1e-5
    assert (w[:, :, None] * difference.abs().square()).sum(1)[labels < 0].max() > 0.1


def test_two_classes_of_the_p_laplacian_sum_to_one() -> None:
    x, labels = _batch(classes=2)
    probs = GraphLearningLayer(6, p=3.0)(x, labels)
    torch.testing.assert_close(probs.sum(1), torch.ones(48, dtype=F64), rtol=0, atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(12, 80),
    d=st.integers(2, 6),
    k=st.integers(2, 8),
    classes=st.integers(1, 4),
    double=st.booleans(),
)
def test_what_always_holds(seed: int, n: int, d: int, k: int, classes: int, double: bool) -> None:
    x, labels = _batch(n, d, classes, 5, seed, F64 if double else torch.float32)
    layer = GraphLearningLayer(k, on_unreached="uniform")
    probs = layer(x, labels, classes)
    atol = 1e-7 if double else 1e-5
    assert probs.shape == (n - 5, classes)
    assert probs.dtype == x.dtype
    torch.testing.assert_close(probs.sum(1), torch.ones(n - 5, dtype=x.dtype), rtol=0, atol=atol)
    # Maximum principle.
    assert probs.min() > -atol
    assert probs.max() < 1 + atol
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    back = torch.full((n,), -1)
    back[(labels < 0).nonzero()[:, 0]] = torch.arange(n - 5)
    rows = back[order][labels[order] < 0]
    torch.testing.assert_close(
        layer(x[order], labels[order], classes), probs[rows], rtol=0, atol=atol
    )
    # A power of two scales exactly, so that near ties of neighbours stay what they are.
    torch.testing.assert_close(layer(x * 64, labels, classes), probs, rtol=0, atol=atol)
    assert torch.equal(layer(x, labels, classes), probs)


def test_two_cliques_keep_to_themselves() -> None:
    x = torch.cat([torch.rand(8, 3, dtype=F64), 9 + torch.rand(8, 3, dtype=F64)])
    labels = torch.full((16,), -1)
    labels[3], labels[12] = 0, 1
    probs = GraphLearningLayer(7)(x, labels)
    expected = torch.tensor([1.0, 0.0], dtype=F64).expand(7, 2)
    torch.testing.assert_close(probs, torch.cat([expected, expected.flip(1)]))


def test_three_points_by_hand() -> None:
    # On a line at 0, 1 and 3 with k = 2: eps = 3, 2, 3; the middle one is unlabeled.
    x = torch.tensor([[0.0], [1.0], [3.0]], dtype=F64)
    near, far = torch.exp(torch.tensor([-4 / 6, -16 / 6], dtype=F64))
    probs = GraphLearningLayer(2)(x, torch.tensor([0, -1, 1]))
    torch.testing.assert_close(probs, torch.stack([near, far])[None] / (near + far))
    probs = GraphLearningLayer(2, tau=0.5)(x, torch.tensor([0, -1, 1]))
    torch.testing.assert_close(probs, torch.stack([near, far])[None] / (near + far + 0.5))


@pytest.mark.parametrize("p", [2.0, 3.0])
def test_rows_without_base_are_named_or_uniform(p: float) -> None:
    x, labels = _batch(n=40)
    far = torch.tensor([2, 7, 11, 30])
    x[far] += 1e3
    labels[far] = -1
    with pytest.raises(ValueError, match=r"4 rows .*\(rows \[2, 7, 11, 30\]\)"):
        GraphLearningLayer(3, p=p)(x, labels)
    x.requires_grad_()
    probs = GraphLearningLayer(3, p=p, on_unreached="uniform")(x, labels, 3)
    lost = torch.isin((labels < 0).nonzero()[:, 0], far)
    assert torch.equal(probs[lost], torch.full((4, 3), 1 / 3, dtype=F64))
    assert ((probs[~lost].sum(1) - 1).abs() < 0.5).all()
    (gradient,) = torch.autograd.grad(probs[:, 0].square().sum(), x)
    assert (gradient[far] == 0).all()
    assert (gradient != 0).any()


def test_unreached_rows_decay_to_zero_with_tau() -> None:
    x, labels = _batch(n=40)
    x[:4] += 1e3
    labels[:4] = -1
    probs = GraphLearningLayer(3, tau=0.1)(x, labels)
    assert (probs[:4] == 0).all()
    assert (probs[4:].sum(1) > 0).all()
    assert (probs.sum(1) < 1).all()


def test_a_cluster_behind_links_as_small_as_rounding_is_cut_off() -> None:
    """Its weights to the base are positive, but what they carry is lost in float64."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(80, 3, generator=rng, dtype=F64)
    x[:10] = 0.01 * x[:10] + 60
    labels = torch.full((80,), -1)
    labels[50:60] = torch.arange(10) % 2
    assert _dense_weights(x, 12)[:10, 10:].max() > 0
    with pytest.raises(ValueError, match="10 rows"):
        GraphLearningLayer(12)(x, labels)
    probs = GraphLearningLayer(12, on_unreached="uniform")(x, labels)
    assert torch.equal(probs[:10], torch.full((10, 2), 0.5, dtype=F64))


@pytest.mark.parametrize("copies", [60, 20])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_identical_points_give_finite_numbers(copies: int, dtype: torch.dtype) -> None:
    x, labels = _batch(dtype=dtype)
    x[:copies] = x[0]
    labels[0], labels[1] = 0, 1
    x.requires_grad_()
    layer = GraphLearningLayer(6, on_unreached="uniform")
    probs = layer(x, labels, 3)
    (gradient,) = torch.autograd.grad((probs[:, 0] + 1e-8).log().sum(), x)
    assert probs.isfinite().all()
    assert gradient.isfinite().all()


def test_all_points_identical_average_the_base() -> None:
    labels = torch.full((9,), -1)
    labels[:3] = torch.tensor([0, 0, 1])
    # With k = 8 all are joined, with equal weights.
    probs = GraphLearningLayer(8)(torch.ones(9, 4), labels)
    torch.testing.assert_close(probs, torch.tensor([2 / 3, 1 / 3]).expand(6, 2))


def test_one_class_has_probability_one_and_no_gradient() -> None:
    x, labels = _batch(classes=1)
    x.requires_grad_()
    probs = GraphLearningLayer(6)(x, labels)
    torch.testing.assert_close(probs, torch.ones(48, 1, dtype=F64))
    (gradient,) = torch.autograd.grad(probs.log().sum(), x)
    assert gradient.abs().max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_widened(dtype: torch.dtype) -> None:
    x, labels = _batch()
    half = x.to(dtype).requires_grad_()
    layer = GraphLearningLayer(6)
    probs = layer(half, labels)
    assert probs.dtype == torch.float32
    torch.testing.assert_close(probs, layer(half.detach().float(), labels))
    probs[:, 0].sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == dtype


def test_autocast_changes_nothing() -> None:
    x, labels = _batch(dtype=torch.float32)
    layer, results = GraphLearningLayer(6), []
    for enabled in (False, True):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            probs = layer(leaf, labels)
            results.append((probs, *torch.autograd.grad(probs[:, 0].square().sum(), leaf)))
    assert all(torch.equal(a, b) for a, b in zip(*results))


def test_float32_is_as_exact_as_its_result_can_be() -> None:
    x, labels = _batch(n=200, d=16, base=20, dtype=torch.float32)
    results = []
    for part in (x, x.double()):
        leaf = part.clone().requires_grad_()
        probs = GraphLearningLayer(8)(leaf, labels)
        results.append((probs, *torch.autograd.grad(probs.square().sum(), leaf)))
    for single, double in zip(*results):
        torch.testing.assert_close(single.double(), double, rtol=1e-6, atol=1e-7)


def test_number_of_threads_does_not_matter() -> None:
    x, labels = _batch(n=900, d=32, classes=40, base=80, dtype=torch.float32)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = x.clone().requires_grad_()
            probs = GraphLearningLayer(12)(leaf, labels)
            results.append((probs, *torch.autograd.grad(probs.square().sum(), leaf)))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in results[1:] for a, b in zip(results[0], other))


def test_arrays_give_an_array() -> None:
    x, labels = _batch()
    layer = GraphLearningLayer(6, tau=torch.nn.Parameter(torch.tensor(0.1)))
    found = layer(x.numpy(), labels.numpy().astype("int32"))
    assert (found == layer(x, labels).detach().numpy()).all()


def test_second_derivatives_are_refused() -> None:
    x, labels = _batch()
    x.requires_grad_()
    probs = GraphLearningLayer(6)(x, labels)
    with pytest.raises(RuntimeError, match="has no second derivatives"):
        torch.autograd.grad(probs[:, 0].sum(), x, create_graph=True)


def test_no_rows_to_predict_give_an_empty_result() -> None:
    x, _ = _batch(n=20)
    x.requires_grad_()
    probs = GraphLearningLayer(4)(x, torch.arange(20) % 4)
    assert probs.shape == (0, 4)
    probs.sum().backward()
    assert x.grad is not None
    assert (x.grad == 0).all()


def test_a_large_batch_never_holds_a_number_per_pair() -> None:
    n, d = 2000, 128
    x, labels = _batch(n, d, 10, 200, dtype=torch.float32)
    layer = GraphLearningLayer(24)
    leaf = x.clone().requires_grad_()
    with torch.profiler.profile(profile_memory=True) as profile:
        layer(leaf, labels)[:, 0].sum().backward()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    largest = max(event.nbytes() for event in events if event.name() == "[memory]")
    assert 4 * n * d <= largest < 4 * n * n / 2
    tracemalloc.start()
    layer(leaf, labels)[:, 0].sum().backward()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * n * n / 2


Change = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, dict[str, Any]]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x, y.clamp(max=-1), {}), "no base row"),
        (lambda x, y: (x, y - 1, {}), "labels must be class numbers"),
        (lambda x, y: (x, y, {"num_classes": 2}), "below the number of classes, 2, got 2"),
        (lambda x, y: (x[:6], y[:6], {}), "k = 6 with 6 rows"),
        (lambda x, y: (x.index_fill(0, torch.tensor([7]), torch.nan), y, {}), r"rows \[7\]"),
        (lambda x, y: (x.index_fill(0, torch.tensor([9]), -torch.inf), y, {}), r"rows \[9\]"),
        (lambda x, y: (x.index_fill(0, torch.tensor([9]), 1e200), y, {}), r"rows \[9\]"),
        (lambda x, y: (x, y, {"base_probs": torch.ones(11, 3)}), "11 rows, but 12 rows"),
        (lambda x, y: (x, y, {"base_probs": torch.ones(12, 2)}), "number of classes, 2"),
        (lambda x, y: (x, y, {"base_probs": torch.full((12, 3), torch.nan)}), "NaN"),
        (
            lambda x, y: (x, y, {"base_probs": torch.ones(12, 3), "num_classes": 4}),
            "3 columns, but num_classes is 4",
        ),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(change: Change, message: str) -> None:
    x, labels, options = change(*_batch())
    with pytest.raises(ValueError, match=message):
        GraphLearningLayer(6)(x, labels, **options)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x, labels = _batch()
    for features, wrong in ((x, labels[:5]), (x[0], labels)):
        with pytest.raises(ValueError, match=r"features must be \(n, d\) and labels \(n,\)"):
            check_batch(features, wrong, 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"tau": -0.1}, "tau must be >= 0 and finite, got -0.1"),
        ({"tau": torch.ones(2)}, r"a tensor of shape \(2,\)"),
        ({"bandwidth": 0.0}, "bandwidth must be > 0 and finite, got 0.0"),
        ({"p": 1.5}, "p must be at least 2 and finite, got 1.5"),
        ({"tol": 0.0}, "tol must lie between 0 and 1"),
    ],
)
def test_arguments_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GraphLearningLayer(**options)


def test_a_learned_tau_that_became_negative_is_refused() -> None:
    tau = nn.Parameter(torch.tensor(0.1))
    layer = GraphLearningLayer(6, tau)
    with torch.no_grad():
        tau.fill_(-0.1)
    with pytest.raises(ValueError, match="keep a learned tau positive"):
        layer(*_batch())
    assert "tau=-0.1" in repr(layer)


def test_a_tolerance_that_cannot_be_met_is_an_error() -> None:
    with pytest.raises(ValueError, match="no convergence"):
        GraphLearningLayer(6, tol=1e-300)(*_batch())
