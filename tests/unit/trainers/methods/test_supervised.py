"""The baseline's loss by hand."""

import math

import pytest
import torch
from labelmesh.trainers.method import Batch
from labelmesh.trainers.methods.supervised import Supervised
from torch import Tensor, nn


def test_only_labeled_rows_cost() -> None:
    inputs = torch.tensor([[math.log(3.0), 0.0], [9.0, -9.0], [0.0, 0.0]])

    def view(name: str, rows: Tensor | None = None) -> Tensor:
        assert name == "weak"
        return inputs if rows is None else inputs[rows]

    net = Supervised().build(nn.Identity(), 2, 2)
    with torch.no_grad():
        for name, value in net.named_parameters():
            value.copy_(torch.eye(2) if name.endswith("weight") else torch.zeros(2))
    labels, generator = torch.tensor([0, -1, 1]), torch.Generator()
    batch = Batch("supervised", torch.arange(3), labels, None, None, view, generator)
    loss = Supervised().loss(net, batch)
    assert loss.total.item() == pytest.approx((-math.log(0.75) + math.log(2)) / 2, rel=1e-6)


def test_no_graph_is_asked_for() -> None:
    assert not Supervised().uses_graph
    assert [phase.nodes for phase in Supervised().phases] == ["labeled"]
