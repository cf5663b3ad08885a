"""Learning rate as a pure function of the epoch."""

from __future__ import annotations

import math

from .config import TrainSpec


def learning_rate(train: TrainSpec, *, epoch: float, step: int) -> float:
    """Learning rate at `epoch` (a real number: 2.5 = half-way through the third epoch).

    "cosine": lr/2 (1 + cos(pi epoch / cosine_end)), cosine_end = epochs unless given; an end
    beyond the last epoch leaves a rate above 0 there (CycleCluster). "step": times `step_factor`
    at each of `step_epochs`. The first `lr_warmup_steps` optimiser steps rise linearly.
    """
    lr = train.lr
    if train.schedule == "cosine":
        end = train.cosine_end or float(train.epochs)
        lr *= 0.5 * (1.0 + math.cos(math.pi * min(epoch / end, 1.0)))
    elif train.schedule == "step":
        lr *= train.step_factor ** sum(epoch >= e for e in train.step_epochs)
    if step < train.lr_warmup_steps:
        lr *= (step + 1) / train.lr_warmup_steps
    return lr
