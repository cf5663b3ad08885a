"""The averaged network against averages worked by hand."""

import pytest
import torch
from labelmesh.trainers.ema import Ema, average, ramped_decay
from torch import nn


def _network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_decay_rises_to_its_limit() -> None:
    assert ramped_decay(0.9, 0) == pytest.approx(0.1)
    assert ramped_decay(0.9, 8) == pytest.approx(0.5)
    assert ramped_decay(0.9, 10_000) == 0.9


def test_average_by_hand() -> None:
    mean = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(3)}
    average(mean, {"w": torch.tensor([5.0, 2.0]), "n": torch.tensor(7)}, decay=0.75)
    assert mean["w"].tolist() == [2.0, 2.0]
    assert mean["n"].item() == 7


def test_average_takes_half_precision_values() -> None:
    mean = {"w": torch.tensor([1.0])}
    average(mean, {"w": torch.tensor([3.0], dtype=torch.bfloat16)}, decay=0.5)
    assert mean["w"].dtype == torch.float32
    assert mean["w"].item() == 2.0


def test_different_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in"):
        average({"a": torch.zeros(1)}, {"b": torch.zeros(1)}, 0.5)


def test_parameters_and_running_statistics_are_averaged() -> None:
    network = _network()
    ema = Ema(network, 0.9)
    before = {k: v.clone() for k, v in network.state_dict().items()}
    for value in network.state_dict().values():
        value.add_(10 if value.is_floating_point() else 1)
    ema.update(network)  # step 0: decay 0.1
    after = ema.network.state_dict()
    for name, value in before.items():
        expected = value + 9 if value.is_floating_point() else value + 1
        torch.testing.assert_close(after[name], expected)


def test_average_does_not_follow_the_network_by_reference() -> None:
    network = _network()
    ema = Ema(network, 0.9)
    assert not ema.network.training
    assert not any(p.requires_grad for p in ema.network.parameters())
    with torch.no_grad():
        next(network.parameters()).add_(1)
    assert not torch.equal(next(network.parameters()), next(ema.network.parameters()))


def test_resumed_average_goes_on_exactly() -> None:
    network, ema = _network(), Ema(_network(), 0.99)
    ema.update(network)
    resumed = Ema(_network(), 0.99)
    resumed.network.load_state_dict(ema.network.state_dict())
    resumed.num_updates = ema.num_updates
    with torch.no_grad():
        next(network.parameters()).mul_(3)
    ema.update(network)
    resumed.update(network)
    assert resumed.num_updates == ema.num_updates == 2
    for a, b in zip(ema.network.state_dict().values(), resumed.network.state_dict().values()):
        assert torch.equal(a, b)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_decay_outside_its_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="must be in"):
        Ema(_network(), decay)
