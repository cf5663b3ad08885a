"""The graph learning layer on a CUDA device: the CPU's numbers, the same bits every time."""

from __future__ import annotations

import pytest
import torch
from labelmesh.trainers.layers.graph_learning import GraphLearningLayer
from torch import Tensor

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def _batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = torch.randn(1100, 32, generator=torch.Generator().manual_seed(0), dtype=dtype)
    labels = torch.arange(1100) % 10
    labels[100:] = -1
    return x, labels


def _results(layer: GraphLearningLayer, x: Tensor, labels: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    probs = layer(leaf, labels)
    (gradient,) = torch.autograd.grad(probs.square().sum(), leaf)
    return [probs.detach().cpu(), gradient.cpu()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "layer",
    [
        GraphLearningLayer(12),
        GraphLearningLayer(12, tau=0.1, bandwidth=6.0),
        GraphLearningLayer(12, p=3.0),
    ],
)
def test_probabilities_and_gradients_are_those_of_the_cpu(
    layer: GraphLearningLayer, dtype: torch.dtype
) -> None:
    x, labels = _batch(dtype)
    here = _results(layer, x, labels)
    there = _results(layer, x.cuda(), labels.cuda())
    tolerance = 1e-8 if dtype == torch.float64 else 1e-5
    for a, b in zip(there, here):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_the_same_input_gives_the_same_bits() -> None:
    x, labels = (part.cuda() for part in _batch(torch.float32))
    first = _results(GraphLearningLayer(12), x, labels)
    for _ in range(3):
        again = _results(GraphLearningLayer(12), x, labels)
        assert all(torch.equal(a, b) for a, b in zip(first, again))


def test_autocast_on_the_device_changes_nothing() -> None:
    x, labels = (part.cuda() for part in _batch(torch.float32))
    plain = GraphLearningLayer(12)(x, labels)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(GraphLearningLayer(12)(x, labels), plain)
