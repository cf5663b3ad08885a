"""Class-balanced sets of labeled nodes that stand beside batches. Pure: a function of seed and
position.

Which nodes are drawn does not depend on the number of ranks, and a run resumes at any step by
asking for it, as with `sampler.Plan`.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from .seeds import generator


class BaseSet:
    """The base rows of one epoch of a phase.

    Args:
        labels: Given labels of the nodes 0..n-1, -1 = unlabeled.
        per_class: Base rows of each class. A class gives at most half of its labeled nodes (but
            one), so that others are left to be trained on.
        every: "epoch": the same rows for all micro-batches; "step": other rows for each.
        score: Of each node. If given, nothing is drawn: each class gives its nodes of the highest
            score, the lower id first among equal ones.

    Raises:
        ValueError: No node is labeled.
    """

    def __init__(
        self,
        labels: Int64[Tensor, " n"],
        per_class: int,
        *,
        seed: int,
        epoch: int,
        every: Literal["epoch", "step"] = "epoch",
        score: Float[Tensor, " n"] | None = None,
    ) -> None:
        self._members = _members(labels)
        self._quotas = [min(per_class, max(1, len(m) // 2)) for m in self._members]
        self._seed, self._epoch = seed, epoch
        self._fixed: Tensor | None = None
        if score is not None:
            self._fixed = _highest(self._members, self._quotas, score.numpy())
        elif every == "epoch":
            self._fixed = self._drawn(epoch)

    def take(self, step: int, index: int) -> Int64[Tensor, " m"]:
        """Base rows of a micro-batch: node ids, ascending."""
        return self._drawn(self._epoch, step, index) if self._fixed is None else self._fixed

    def _drawn(self, *position: int) -> Tensor:
        rng = generator(self._seed, "base", *position)
        parts = [
            rng.choice(m, quota, replace=False) for m, quota in zip(self._members, self._quotas)
        ]
        return torch.from_numpy(np.sort(np.concatenate(parts)))


def highest_per_class(
    labels: Int64[Tensor, " n"], per_class: int, score: Float[Tensor, " n"]
) -> Int64[Tensor, " m"]:
    """Up to `per_class` nodes of each class, those of the highest score; ids, ascending.

    Raises:
        ValueError: No node is labeled.
    """
    members = _members(labels)
    return _highest(members, [min(per_class, len(m)) for m in members], score.numpy())


def _members(labels: Tensor) -> list[np.ndarray]:
    """Ids of the nodes of each class that has any, ascending."""
    known = labels.numpy()
    ids = np.flatnonzero(known >= 0)
    if not len(ids):
        raise ValueError(f"none of the {len(labels)} nodes is labeled; base rows need labels")
    ids = ids[np.argsort(known[ids], kind="stable")]
    return np.split(ids, np.flatnonzero(np.diff(known[ids])) + 1)


def _highest(members: list[np.ndarray], quotas: list[int], score: np.ndarray) -> Tensor:
    """Of each class; the lower id first among equal scores."""
    parts = [m[np.argsort(-score[m], kind="stable")[:quota]] for m, quota in zip(members, quotas)]
    return torch.from_numpy(np.sort(np.concatenate(parts)))
