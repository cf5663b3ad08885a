"""One optimiser step by hand, micro-batches against one batch, bf16, and a compiled network."""

from __future__ import annotations

import copy
from pathlib import Path

import jaxtyping
import pytest
import torch
from labelmesh.graph_store.view import Neighborhood
from labelmesh.trainers import engine as engine_module
from labelmesh.trainers.config import ConfigError, TrainSpec, parse_spec
from labelmesh.trainers.engine import LocalEngine, check_compiler, make_optimizer
from labelmesh.trainers.method import Network
from torch import Tensor, nn

CPU = torch.device("cpu")


class Tiny(Network):
    """Two linear layers; batch norm between them only where asked for."""

    feature_dim = 4

    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4) if norm else nn.Tanh())
        self.classifier = nn.Linear(4, 2)

    def features(self, inputs: Tensor) -> Tensor:
        out: Tensor = self.body(inputs)
        return out

    def head(self, features: Tensor, neighborhood: Neighborhood | None) -> Tensor:
        out: Tensor = self.classifier(features)
        return out


def tiny(*, norm: bool = False) -> Tiny:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Tiny(norm=norm)


def spec(**changes: object) -> TrainSpec:
    base = {"epochs": 1, "batch_size": 8, "labeled_per_batch": 4, "micro_batches": 1}
    return TrainSpec(**{**base, "precision": "fp32", **changes})  # type: ignore[arg-type]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 3, generator=generator), torch.randint(2, (8,), generator=generator)


def step(engine: LocalEngine, parts: int, lr: float = 0.1) -> None:
    """One optimiser step of cross-entropy on the batch, in `parts` micro-batches."""
    pieces = list(zip(*(torch.chunk(t, parts) for t in batch())))
    for i, (inputs, labels) in enumerate(pieces):
        loss = nn.functional.cross_entropy(engine(inputs).logits, labels)
        engine.micro_step(loss, lr=lr, last=i + 1 == parts)


def gradients(network: Tiny) -> dict[str, Tensor]:
    """Of the whole batch's loss, by torch alone."""
    inputs, labels = batch()
    loss = nn.functional.cross_entropy(network(inputs).logits, labels)
    values = torch.autograd.grad(loss, list(network.parameters()))
    return dict(zip(dict(network.named_parameters()), values))


def is_decayed(parameter: Tensor, all_of_them: bool) -> bool:
    return all_of_them or parameter.ndim > 1


@pytest.mark.parametrize("all_of_them", [False, True])
def test_two_steps_of_sgd_are_those_by_hand(all_of_them: bool) -> None:
    rates, mu, decay = (0.1, 0.05), 0.9, 0.02
    train = spec(momentum=mu, weight_decay=decay, decay_norm_and_bias=all_of_them)
    engine, by_hand = LocalEngine(tiny(), train, CPU), tiny()
    velocity = {n: torch.zeros_like(p) for n, p in by_hand.named_parameters()}
    for lr in rates:
        step(engine, parts=1, lr=lr)
        slope = gradients(by_hand)
        with torch.no_grad():
            for name, p in by_hand.named_parameters():
                g = slope[name] + (decay * p if is_decayed(p, all_of_them) else 0)
                velocity[name] = mu * velocity[name] + g
                p -= lr * (g + mu * velocity[name])  # Nesterov
    torch.testing.assert_close(dict(engine.network.state_dict()), dict(by_hand.state_dict()))


@pytest.mark.parametrize("all_of_them", [False, True])
def test_two_steps_of_adamw_are_those_by_hand(all_of_them: bool) -> None:
    lr, (b1, b2), decay, eps = 0.01, (0.8, 0.95), 0.1, 1e-8
    train = spec(
        optimizer="adamw", betas=(b1, b2), weight_decay=decay, decay_norm_and_bias=all_of_them
    )
    engine, by_hand = LocalEngine(tiny(), train, CPU), tiny()
    first = {n: torch.zeros_like(p) for n, p in by_hand.named_parameters()}
    second = copy.deepcopy(first)
    for t in (1, 2):
        step(engine, parts=1, lr=lr)
        slope = gradients(by_hand)
        with torch.no_grad():
            for name, p in by_hand.named_parameters():
                g = slope[name]
                if is_decayed(p, all_of_them):
                    p -= lr * decay * p
                first[name] = b1 * first[name] + (1 - b1) * g
                second[name] = b2 * second[name] + (1 - b2) * g.square()
                mean, square = first[name] / (1 - b1**t), second[name] / (1 - b2**t)
                p -= lr * mean / (square.sqrt() + eps)
    torch.testing.assert_close(dict(engine.network.state_dict()), dict(by_hand.state_dict()))


def test_every_trainable_parameter_is_in_one_group() -> None:
    network = tiny(norm=True)
    network.classifier.bias.requires_grad_(False)
    groups = make_optimizer(network, spec()).param_groups
    taken = [id(p) for group in groups for p in group["params"]]
    assert sorted(taken) == sorted(id(p) for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_micro_batches_step_like_one_batch(clip: float) -> None:
    whole = LocalEngine(tiny(), spec(grad_clip=clip), CPU)
    parts = LocalEngine(tiny(), spec(grad_clip=clip, micro_batches=4, batch_size=8), CPU)
    for _ in range(3):
        step(whole, parts=1)
        step(parts, parts=4)
    torch.testing.assert_close(
        dict(parts.network.state_dict()), dict(whole.network.state_dict()), rtol=1e-5, atol=1e-6
    )


def test_clipped_gradients_have_the_norm_asked_for() -> None:
    clip, lr = 0.05, 0.1
    train = spec(grad_clip=clip, weight_decay=0, momentum=0)
    engine, start = LocalEngine(tiny(), train, CPU), tiny()
    step(engine, parts=1, lr=lr)
    moved = [a - b for a, b in zip(engine.network.parameters(), start.parameters())]
    norm = torch.cat([m.detach().flatten() for m in moved]).norm()
    assert float(norm) == pytest.approx(lr * clip, rel=1e-4)


def test_bf16_is_autocast_over_float32_weights() -> None:
    engine = LocalEngine(tiny(norm=True), spec(precision="bf16"), CPU)
    plain = LocalEngine(tiny(norm=True), spec(), CPU)
    inputs = batch()[0]
    low, high = engine(inputs), plain(inputs)
    assert low.logits.dtype == low.features.dtype == torch.float32
    assert not torch.equal(low.logits, high.logits)
    # values have 8 bits
    torch.testing.assert_close(low.logits, high.logits, rtol=0.05, atol=0.05)
    step(engine, parts=1)
    dtypes = {v.dtype for v in engine.network.state_dict().values()}
    assert dtypes == {torch.float32, torch.int64}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch's own access
def test_compiled_network_steps_like_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    # Traced and run by torch itself: a real compiler takes half a minute to start. Checks of
    # shapes, which tests alone have, cannot be traced.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setattr(engine_module, "COMPILER", "eager")
    monkeypatch.setattr(engine_module, "check_compiler", lambda device: None)
    plain = LocalEngine(tiny(norm=True), spec(), CPU)
    compiled = LocalEngine(tiny(norm=True), spec(compile=True), CPU)
    torch._dynamo.utils.counters.clear()
    for engine in (plain, compiled):
        step(engine, parts=1)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0
    torch.testing.assert_close(
        dict(compiled.network.state_dict()), dict(plain.network.state_dict()), rtol=0, atol=0
    )
    compiled.save(tmp_path)
    plain.load(tmp_path)


def test_machine_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"lacks a compiler .*set train.compile = false"):
        check_compiler(CPU)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"betas": [0.9, 0.99]}, "used by train.optimizer = 'adamw' alone"),
        ({"optimizer": "adamw", "betas": [0.9, 1.0]}, "less than 1"),
    ],
)
def test_betas_that_cannot_be_used_are_refused(values: dict[str, object], sentence: str) -> None:
    body = {"name": "t", "data": {"uri": "x"}, "method": {"name": "supervised"}}
    with pytest.raises(ConfigError, match=sentence):
        parse_spec({**body, "train": {"epochs": 1, **values}})
