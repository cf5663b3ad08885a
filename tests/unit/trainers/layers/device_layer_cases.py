"""The graph learning layer where features are not on the CPU: the same numbers, made there."""

from __future__ import annotations

import pytest
import torch
from labelmesh.graph_store.kernels.batch_graph import connect, laplacian, reachable
from labelmesh.tests.unit.graph_store.other_device import DEVICE, OtherDevice
from labelmesh.trainers.layers.graph_learning import GraphLearningLayer, batch_weights
from labelmesh.trainers.layers.graph_learning_solve import Problem, pull_back, solve
from torch import Tensor


def _batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=dtype)
    labels = torch.arange(40) % 3
    labels[10:] = -1
    return x, labels


@pytest.mark.parametrize(
    ("layer", "dtype"),
    [
        (GraphLearningLayer(5), torch.float32),
        (GraphLearningLayer(5), torch.float64),
        (GraphLearningLayer(5, tau=0.1, bandwidth=2.0), torch.float64),
        (GraphLearningLayer(5, tau=1.0, p=2.2), torch.float64),
    ],
)
def test_layer_on_a_device_gives_the_numbers_of_the_cpu(
    layer: GraphLearningLayer, dtype: torch.dtype
) -> None:
    x, labels = _batch(dtype)
    here = layer(x, labels)
    with OtherDevice():
        there = layer(x.to(DEVICE), labels.to(DEVICE))
    tolerance = 1e-9 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(there.cpu(), here, rtol=0, atol=tolerance)


def _derivatives(x: Tensor, base: Tensor, y: Tensor, v: Tensor) -> list[Tensor]:
    """By weights, base labels, tau and features (autograd itself would leave the emulation)."""
    graph, weights = batch_weights(x, 5, "self_tuning")
    problem = Problem(graph, base, 2.0, 1e-13, "raise")
    solved = solve(problem, weights, y, y.new_zeros(()))
    by_weights, by_labels, by_tau = pull_back(problem, solved, weights, v)
    by_features = laplacian(graph, by_weights[:, None], x)
    assert by_labels is not None
    return [part.cpu() for part in (by_weights, by_labels, by_tau, by_features)]


def test_derivatives_on_a_device_are_those_of_the_cpu() -> None:
    x, labels = _batch(torch.float64)
    rng = torch.Generator().manual_seed(1)
    y, v = (torch.rand(n, 3, generator=rng, dtype=torch.float64) for n in (10, 30))
    parts = [x, labels >= 0, y, v]
    here = _derivatives(*parts)
    with OtherDevice():
        there = _derivatives(*(part.to(DEVICE) for part in parts))
    for a, b in zip(there, here):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_unreached_rows_are_found_on_a_device() -> None:
    x, labels = _batch(torch.float32)
    x[30:] += 1e6
    with OtherDevice():
        layer, parts = GraphLearningLayer(5), (x.to(DEVICE), labels.to(DEVICE))
        with pytest.raises(ValueError, match=r"rows \[30, 31"):
            layer(*parts)
        probs = GraphLearningLayer(5, on_unreached="uniform")(*parts)
        assert torch.equal(probs[20:].cpu(), torch.full((10, 3), 1 / 3))


def test_edges_are_numbered_as_on_the_cpu() -> None:
    rng = torch.Generator().manual_seed(1)
    ids = torch.stack([torch.randperm(39, generator=rng)[:4] for _ in range(40)])
    ids += (ids >= torch.arange(40)[:, None]).to(torch.int64)
    here = connect(ids)
    weights, start = torch.ones(here.first.shape, dtype=torch.float64), torch.arange(40) == 3
    with OtherDevice():
        there = connect(ids.to(DEVICE))
        for name in ("first", "second", "offsets", "cols", "edges", "listed"):
            assert torch.equal(getattr(there, name).cpu(), getattr(here, name))
        found = reachable(there, weights.to(DEVICE), start.to(DEVICE))
        assert torch.equal(found.cpu(), reachable(here, weights, start))
