"""Adversarial examples: inputs moved a little so that a network errs. Pure functions.

Units are those of the inputs that the network takes (the paper's "normalised pixels"): with the
views of this project images lie in -1..1, so that 0.1 is a twentieth of the pixel range. `low` and
`high` bound what is a valid input; without bounds, as for embeddings, they are infinite.

A network that sees a batch as one graph (GLL) is attacked as the paper does it: all rows at once,
against the sum of their losses, with the gradient through the graph; base rows stay clean.

Symbols of the paper (Brown et al., "Graph Learning Layer", section 4.3.1): epsilon `eps`, alpha
`step_size`, c `weight`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

LossOf = Callable[[Tensor], Tensor]
"""From inputs to the scalar that an attack makes large: a sum over rows."""

LogitsOf = Callable[[Tensor], Tensor]
"""From inputs `b ...` to logits `b C`."""

_INSIDE = 1 - 1e-6  # how far towards the bounds tanh can go and come back


@dataclass(frozen=True)
class Attacked:
    """What an attack made of a batch.

    Attributes:
        inputs: The moved inputs, within the bounds.
        masked: Rows whose gradient at the start was exactly zero everywhere: an attack by
            gradients cannot move them, which is no robustness.
    """

    inputs: Float[Tensor, "b ..."]
    masked: Bool[Tensor, " b"]


def cross_entropy_of(logits_of: LogitsOf, labels: Int64[Tensor, " b"]) -> LossOf:
    """The summed cross-entropy towards the true labels."""

    def loss(inputs: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(logits_of(inputs), labels, reduction="sum")

    return loss


def fgsm(
    loss_of: LossOf,
    inputs: Float[Tensor, "b ..."],
    *,
    eps: float,
    low: float = -math.inf,
    high: float = math.inf,
) -> Attacked:
    """`x + eps sign(grad J(x))`, clipped to the bounds (Goodfellow et al., ICLR 2015).

    Raises:
        ValueError: eps < 0, or inputs outside the bounds.
    """
    _check(inputs, eps, low, high)
    gradient = _gradient(loss_of, inputs)
    return Attacked((inputs + eps * gradient.sign()).clamp(low, high), _is_zero(gradient))


def ifgsm(
    loss_of: LossOf,
    inputs: Float[Tensor, "b ..."],
    *,
    eps: float,
    step_size: float = 0.05,
    steps: int | None = None,
    low: float = -math.inf,
    high: float = math.inf,
) -> Attacked:
    """Repeated steps `x + step_size sign(grad J(x))`, projected (Kurakin et al., ICLR 2017).

    The projection is on the ball |x - x_0|_inf <= eps and on the bounds.

    Args:
        steps: `5 eps / step_size` unless told, so that the ball's boundary can be reached and
            followed.

    Raises:
        ValueError: eps < 0, step_size <= 0, steps < 1, or inputs outside the bounds.
    """
    _check(inputs, eps, low, high)
    _check_steps(1 if steps is None else steps, step_size)
    steps = max(1, math.ceil(5 * eps / step_size)) if steps is None else steps
    return _climb(loss_of, inputs, inputs, eps, step_size, steps, (low, high))


def pgd(
    loss_of: LossOf,
    inputs: Float[Tensor, "b ..."],
    *,
    eps: float,
    step_size: float,
    steps: int,
    generator: torch.Generator,
    low: float = -math.inf,
    high: float = math.inf,
) -> Attacked:
    """`ifgsm` from a random place in the ball (Madry et al., ICLR 2018); for training.

    Args:
        generator: On the CPU; draws the start, uniform in the ball.

    Raises:
        ValueError: As `ifgsm`.
    """
    _check(inputs, eps, low, high)
    _check_steps(steps, step_size)
    noise = torch.rand(inputs.shape, generator=generator).to(inputs)
    start = (inputs + eps * (2 * noise - 1)).clamp(low, high)
    return _climb(loss_of, inputs, start, eps, step_size, steps, (low, high))


def carlini_wagner(
    logits_of: LogitsOf,
    inputs: Float[Tensor, "b ..."],
    labels: Int64[Tensor, " b"],
    *,
    low: float,
    high: float,
    weights: tuple[float, float] = (1.0, 1000.0),
    searches: int = 5,
    steps: int = 100,
    lr: float = 0.005,
    margin: float = 0.0,
) -> Attacked:
    """The nearest inputs, in L2, that the network takes for the second most probable class.

    Minimises `|x - x_0|^2 + c max(max_(i != t) z_i - z_t, -margin)` over w with
    x = mid + half tanh(w), by Adam (Carlini and Wagner, S&P 2017, eqs. of sections V and VI; z are
    the logits, for GLL logarithms of probabilities, whose differences are those of logits). The
    weight c is searched per row between `weights`, in the middle of logarithms: smaller after a
    success, larger after a failure. Rows that are wrong already stay as they are; rows without
    success too, for no distance was found for them.

    Departure: the paper runs one c after the other from 1 to 1000 and reports each; `searches=1`
    with `weights=(c, c)` is one of these runs.

    Args:
        labels: True classes.
        low, high: Must be finite.
        steps, lr: Of Adam, for each c; 100 and 0.005 in the paper.
        margin: How much larger the target's logit is to be (their kappa).

    Raises:
        ValueError: Bounds that are infinite or that inputs lie outside of, weights that are no
            range above 0, fewer than two classes, searches < 1, steps < 1 or lr <= 0.
    """
    _check_carlini_wagner(inputs, low, high, weights, searches)
    _check_steps(steps, lr)
    with torch.no_grad():
        start = logits_of(inputs)
    if start.shape[1] < 2:
        raise ValueError(f"{start.shape[1]} class: there is no second most probable one")
    target = start.topk(2, dim=1).indices[:, 1]
    attacked = start.argmax(1) == labels
    search = _Search(inputs, weights)
    masked = torch.zeros_like(attacked)
    for attempt in range(searches):
        found, first_masked = _minimise(
            logits_of, inputs, target, search.weight, (low, high), steps, lr, margin
        )
        if attempt == 0:
            masked = first_masked & attacked
        search.learn(found)
    moved = torch.where(_per_row(attacked & search.succeeded, inputs), search.best, inputs)
    return Attacked(moved, masked)


@dataclass(frozen=True)
class _Found:
    """Nearest success of each row for one c; squared distance inf where there was none."""

    inputs: Tensor
    squared: Tensor


class _Search:
    """Binary search of each row's weight on a logarithmic scale, and the best found so far."""

    def __init__(self, inputs: Tensor, weights: tuple[float, float]) -> None:
        lowest, highest = weights
        shape = (len(inputs),)
        self._lower = inputs.new_full(shape, math.log(lowest))
        self._upper = inputs.new_full(shape, math.log(highest))
        self.best = inputs
        self._squared = inputs.new_full(shape, math.inf)

    @property
    def weight(self) -> Tensor:
        return ((self._lower + self._upper) / 2).exp()

    @property
    def succeeded(self) -> Tensor:
        return self._squared < math.inf

    def learn(self, found: _Found) -> None:
        middle = (self._lower + self._upper) / 2
        success = found.squared < math.inf
        self._upper = torch.where(success, middle, self._upper)
        self._lower = torch.where(success, self._lower, middle)
        nearer = found.squared < self._squared
        self._squared = torch.where(nearer, found.squared, self._squared)
        self.best = torch.where(_per_row(nearer, self.best), found.inputs, self.best)


def _minimise(
    logits_of: LogitsOf,
    inputs: Tensor,
    target: Tensor,
    weight: Tensor,
    bounds: tuple[float, float],
    steps: int,
    lr: float,
    margin: float,
) -> tuple[_Found, Tensor]:
    """Adam for one weight per row; the nearest success on the way, and rows without gradient."""
    low, high = bounds
    middle, half = (high + low) / 2, (high - low) / 2
    variable = torch.atanh(_INSIDE * (inputs - middle) / half).detach().requires_grad_()
    adam = torch.optim.Adam([variable], lr=lr)
    found = _Found(inputs, inputs.new_full((len(inputs),), math.inf))
    masked = torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
    for step in range(steps + 1):
        # the way there and back by tanh rounds; clamping makes the bounds exact
        moved = (middle + half * torch.tanh(variable)).clamp(low, high)
        gap = _gap(logits_of(moved), target)
        squared = (moved - inputs).square().flatten(1).sum(1)
        nearer = (gap.detach() < -margin) & (squared.detach() < found.squared)
        found = _Found(
            torch.where(_per_row(nearer, inputs), moved.detach(), found.inputs),
            torch.where(nearer, squared.detach(), found.squared),
        )
        if step == steps:
            break
        if step == 0:
            (slope,) = torch.autograd.grad(gap.sum(), moved, retain_graph=True)
            masked = _is_zero(slope)
        # just beyond the boundary: a row that stops on it counts for no class
        objective = squared + weight * (gap + margin + 1e-3).clamp(min=0)
        (gradient,) = torch.autograd.grad(objective.sum(), variable)
        variable.grad = gradient
        adam.step()
    return found, masked


def _climb(
    loss_of: LossOf,
    inputs: Tensor,
    start: Tensor,
    eps: float,
    step_size: float,
    steps: int,
    bounds: tuple[float, float],
) -> Attacked:
    """Steps by the gradient's sign from `start`, kept in the ball around `inputs`."""
    moved, masked = start, torch.zeros(len(inputs), dtype=torch.bool, device=inputs.device)
    for step in range(steps):
        gradient = _gradient(loss_of, moved)
        if step == 0:
            masked = _is_zero(gradient)
        moved = moved + step_size * gradient.sign()
        moved = torch.minimum(torch.maximum(moved, inputs - eps), inputs + eps).clamp(*bounds)
    return Attacked(moved, masked)


def _gap(logits: Tensor, target: Tensor) -> Tensor:
    """How far the target's logit is below the largest other one; negative after a success."""
    own = logits.gather(1, target[:, None])[:, 0]
    others = logits.scatter(1, target[:, None], -math.inf)
    return others.max(1).values - own


def _gradient(loss_of: LossOf, inputs: Tensor) -> Tensor:
    """Of a scalar loss with respect to the inputs; parameters collect nothing."""
    with torch.enable_grad():
        leaf = inputs.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(leaf), leaf)
    return gradient


def _is_zero(gradient: Tensor) -> Tensor:
    return (gradient == 0).flatten(1).all(1)


def _per_row(flags: Tensor, like: Tensor) -> Tensor:
    return flags.reshape(-1, *[1] * (like.ndim - 1))


def _check(inputs: Tensor, eps: float, low: float, high: float) -> None:
    if not eps >= 0:
        raise ValueError(f"eps = {eps}: must be >= 0, in the units of the inputs")
    _check_bounds(inputs, low, high)


def _check_bounds(inputs: Tensor, low: float, high: float) -> None:
    if inputs.numel() and not bool(((inputs >= low) & (inputs <= high)).all()):
        raise ValueError(
            f"inputs go from {float(inputs.min()):.4g} to {float(inputs.max()):.4g}, outside of "
            f"low = {low:.4g} and high = {high:.4g}; give the bounds in the units of the inputs"
        )


def _check_steps(steps: int, step_size: float) -> None:
    if steps < 1 or not step_size > 0:
        raise ValueError(f"steps = {steps}, step = {step_size}: must be 1 or more, and > 0")


def _check_carlini_wagner(
    inputs: Tensor, low: float, high: float, weights: tuple[float, float], searches: int
) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ValueError(f"low = {low}, high = {high}: this attack needs finite bounds, low < high")
    _check_bounds(inputs, low, high)
    if not 0 < weights[0] <= weights[1] or searches < 1:
        raise ValueError(
            f"weights = {weights}, searches = {searches}: must be a range above 0, and 1 or more"
        )
