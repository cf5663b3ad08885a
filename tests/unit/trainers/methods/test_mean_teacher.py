"""Mean Teacher's loss by hand, and its teacher against the recurrence by hand."""

import math
from itertools import pairwise

import pytest
import torch
from labelmesh.trainers.config import TrainSpec
from labelmesh.trainers.ema import Ema, ramped_decay
from labelmesh.trainers.engine import LocalEngine
from labelmesh.trainers.losses import prediction_mse, ramp_up
from labelmesh.trainers.method import Batch, ModelOutput, Network
from labelmesh.trainers.methods.mean_teacher import MeanTeacher
from torch import Tensor, nn

INPUTS = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [0.0, 0.0]])


def _network() -> Network:
    net = MeanTeacher().build(nn.Identity(), 2, 2)
    with torch.no_grad():
        for name, value in net.named_parameters():
            value.copy_(torch.eye(2) if name.endswith("weight") else torch.zeros(2))
    return net


def _teacher(inputs: Tensor) -> ModelOutput:
    logits = torch.tensor([0.0, math.log(3.0)]).expand(inputs.shape[0], 2)
    return ModelOutput(inputs, logits, logits)


def _batch(epoch: float) -> Batch:
    def view(name: str, rows: Tensor | None = None) -> Tensor:
        return INPUTS if rows is None else INPUTS[rows]

    labels, generator = torch.tensor([0, -1, -1]), torch.Generator()
    return Batch(
        "mixed",
        torch.arange(3),
        labels,
        None,
        None,
        view,
        generator,
        epoch=epoch,
        teacher=_teacher,
    )


@pytest.mark.parametrize("epoch", [0.0, 2.0, 8.0])
def test_loss_by_hand(epoch: float) -> None:
    loss = MeanTeacher(consistency=4.0, rampup_epochs=4.0).loss(_network(), _batch(epoch))
    # students say (1/2, 1/2), (3/4, 1/4), (1/2, 1/2); the teacher (1/4, 3/4) of every row
    squares = (2 * 0.25**2 + 2 * 0.5**2 + 2 * 0.25**2) / 3
    weight = 4.0 * math.exp(-5 * (1 - min(epoch / 4, 1)) ** 2)
    assert loss.total.item() == pytest.approx(math.log(2) + weight * squares, rel=1e-6)
    assert loss.parts["consistency"].item() == pytest.approx(squares, rel=1e-6)


def test_consistency_reaches_the_student_alone() -> None:
    student = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    teacher = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    prediction_mse(student, teacher).backward()
    assert teacher.grad is None
    expected = 2 * (student.softmax(1) - teacher.softmax(1)).detach() / 5
    p = student.softmax(1).detach()
    by_hand = p * (expected - (expected * p).sum(1, keepdim=True))
    assert student.grad is not None
    torch.testing.assert_close(student.grad, by_hand)


def test_ramp_rises_to_one_and_stays() -> None:
    values = [ramp_up(e / 10, 5.0) for e in range(80)]
    assert values[0] == pytest.approx(math.exp(-5))
    assert all(b >= a for a, b in pairwise(values))
    assert values[50] == values[-1] == 1.0
    assert ramp_up(0.0, 0.0) == 1.0


def test_teacher_is_the_average_by_hand() -> None:
    backbone = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    net = MeanTeacher().build(backbone, 3, 2)
    spec = TrainSpec(epochs=1, batch_size=4, labeled_per_batch=2, micro_batches=1, ema_decay=0.5)
    engine, ema = LocalEngine(net, spec, torch.device("cpu")), Ema(net, spec.ema_decay)
    by_hand = {k: v.clone() for k, v in net.state_dict().items()}
    draw = torch.Generator().manual_seed(0)
    net.train()
    for step in range(5):
        x, y = torch.randn(4, 2, generator=draw), torch.tensor([0, 1, 0, 1])
        engine.micro_step(nn.functional.cross_entropy(engine(x).logits, y), lr=0.1, last=True)
        ema.update(net)
        decay = ramped_decay(0.5, step)
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                by_hand[name] = decay * by_hand[name] + (1 - decay) * value
            else:
                by_hand[name] = value.clone()
    for name, value in ema.network.state_dict().items():
        torch.testing.assert_close(value, by_hand[name])
    assert not ema.network.training
