"""FixMatch's loss by hand."""

import math

import pytest
import torch
from labelmesh.trainers.method import Batch, Loss
from labelmesh.trainers.methods.fixmatch import FixMatch
from torch import Tensor, nn

VIEWS = {
    # labeled row, confident unlabeled row (0.9, 0.1), doubtful one (2/3, 1/3)
    "weak": torch.tensor([[0.0, 0.0], [math.log(9.0), 0.0], [math.log(2.0), 0.0]]),
    "strong": torch.tensor([[7.0, 7.0], [0.0, math.log(3.0)], [5.0, 0.0]]),
}


def _loss(labels: list[int], threshold: float, weight: float) -> Loss:
    def view(name: str, rows: Tensor | None = None) -> Tensor:
        return VIEWS[name] if rows is None else VIEWS[name][rows]

    method = FixMatch(threshold=threshold, unlabeled_weight=weight)
    net = method.build(nn.Identity(), 2, 2)
    with torch.no_grad():
        for name, value in net.named_parameters():
            value.copy_(torch.eye(2) if name.endswith("weight") else torch.zeros(2))
    given, generator = torch.tensor(labels), torch.Generator()
    batch = Batch("mixed", torch.arange(3), given, None, None, view, generator)
    return method.loss(net, batch)


def test_confident_weak_views_label_strong_views() -> None:
    loss = _loss([0, -1, -1], threshold=0.85, weight=2.0)
    consistency = -math.log(0.25) / 2  # argmax 0, strong view gives it 1/4; two unlabeled rows
    assert loss.total.item() == pytest.approx(math.log(2) + 2 * consistency, rel=1e-6)
    assert loss.parts["passed"].item() == 0.5


def test_no_confident_row_leaves_the_supervised_loss() -> None:
    loss = _loss([0, -1, -1], threshold=0.99, weight=1.0)
    assert loss.total.item() == pytest.approx(math.log(2), rel=1e-6)


def test_labeled_batch_costs_the_supervised_loss() -> None:
    loss = _loss([0, 0, 0], threshold=0.5, weight=1.0)
    expected = (math.log(2) - math.log(0.9) - math.log(2 / 3)) / 3
    assert loss.total.item() == pytest.approx(expected, rel=1e-6)
    assert "consistency" not in loss.parts
