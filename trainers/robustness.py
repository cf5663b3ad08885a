"""Accuracy of a finished run's network, clean and under attack."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Tensor

from .attacks import Attacked, carlini_wagner, cross_entropy_of, fgsm, ifgsm
from .predict import Predictor

ATTACKS = ("fgsm", "ifgsm", "cw")


@dataclass(frozen=True)
class AttackSpec:
    """An attack and its options, in the units of normalised inputs (images lie in -1..1).

    Attributes:
        name: One of ATTACKS.
        eps: Largest change of a value, for "fgsm" and "ifgsm".
        step_size, steps: Of "ifgsm"; `steps` None: 5 eps / step_size.
        weights, searches, cw_steps, lr: Of "cw"; see `attacks.carlini_wagner`.
    """

    name: str
    eps: float = 0.1
    step_size: float = 0.05
    steps: int | None = None
    weights: tuple[float, float] = (1.0, 1000.0)
    searches: int = 5
    cw_steps: int = 100
    lr: float = 0.005

    def __post_init__(self) -> None:
        """Check the name.

        Raises:
            ValueError: There is no such attack.
        """
        if self.name not in ATTACKS:
            raise ValueError(f"attack = {self.name!r}: known are {', '.join(ATTACKS)}")


@dataclass(frozen=True)
class Robustness:
    """Counts over the samples with a known class.

    Attributes:
        accuracy: Without an attack.
        accuracy_under_attack: With it; a batch's moved inputs are predicted together.
        zero_gradient_share: Samples whose gradient was exactly zero: what the attack could not
            move is no robustness (gradient masking).
        mean_l2, mean_linf: How far moved samples were moved, in normalised units; nan if none was.

    The last four are None without an attack.
    """

    count: int
    accuracy: float
    accuracy_under_attack: float | None = None
    zero_gradient_share: float | None = None
    mean_l2: float | None = None
    mean_linf: float | None = None


def measure(
    predictor: Predictor,
    batches: Iterable[tuple[Tensor, Int64[Tensor, " b"]]],
    attack: AttackSpec | None,
) -> Robustness:
    """Predict, attack and predict again, batch by batch.

    Args:
        batches: Inputs as `Predictor.predict` takes them, and true classes.

    Raises:
        ValueError: An option of the attack is out of range, or the attack needs bounded inputs
            (images) and these are embeddings.
    """
    right = still_right = masked = count = 0
    lengths: list[Tensor] = []
    low, high = _bounds(predictor)
    for raw, truth in batches:
        inputs, labels = predictor.normalize(raw), truth.to(predictor.device)
        right += _num_right(predictor, inputs, labels)
        count += len(labels)
        if attack is None:
            continue
        attacked = _attack(predictor, inputs, labels, attack, low, high)
        still_right += _num_right(predictor, attacked.inputs, labels)
        masked += int(attacked.masked.sum())
        change = (attacked.inputs - inputs).flatten(1)
        change = change[(change != 0).any(1)]
        lengths.append(torch.stack([change.norm(dim=1), change.abs().amax(1)]).cpu())
    if not count:
        return Robustness(0, math.nan)
    if attack is None:
        return Robustness(count, right / count)
    means = torch.cat(lengths, dim=1).double().mean(1).tolist()
    return Robustness(count, right / count, still_right / count, masked / count, *means)


@torch.no_grad()
def _num_right(predictor: Predictor, inputs: Tensor, labels: Tensor) -> int:
    return int((predictor.logits(inputs).argmax(1) == labels).sum())


def _attack(
    predictor: Predictor,
    inputs: Tensor,
    labels: Tensor,
    spec: AttackSpec,
    low: float,
    high: float,
) -> Attacked:
    if spec.name == "cw":
        return carlini_wagner(
            predictor.logits,
            inputs,
            labels,
            low=low,
            high=high,
            weights=spec.weights,
            searches=spec.searches,
            steps=spec.cw_steps,
            lr=spec.lr,
        )
    loss = cross_entropy_of(predictor.logits, labels)
    if spec.name == "fgsm":
        return fgsm(loss, inputs, eps=spec.eps, low=low, high=high)
    return ifgsm(
        loss,
        inputs,
        eps=spec.eps,
        step_size=spec.step_size,
        steps=spec.steps,
        low=low,
        high=high,
    )


def _bounds(predictor: Predictor) -> tuple[float, float]:
    """Least and largest value of a normalised image; infinite for embeddings."""
    if len(predictor.shape) != 3:
        return -math.inf, math.inf
    ends = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, *predictor.shape)
    normalized = predictor.normalize(ends)
    return float(normalized.min()), float(normalized.max())
