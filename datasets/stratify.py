"""Random orders that keep classes in proportion. Pure."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from .seeds import generator


def stratified_order(labels: Int64[Tensor, " n"], seed: int, stream: str) -> Int64[Tensor, " n"]:
    """A random order of which every prefix holds the classes (and -1) in equal proportion.

    The i-th of the m members of a class stands at (i + u) / m of the way, u uniform per class. Of C
    classes among n samples, a prefix has the due number of a class up to 1 + C m / n, and a longer
    prefix contains a shorter one.
    """
    draw = generator(seed, stream)
    order = draw.permutation(len(labels))
    _, classes, counts = np.unique(labels.numpy()[order], return_inverse=True, return_counts=True)
    shift = draw.random(len(counts))
    place = (rank_in_class(classes) + shift[classes]) / counts[classes]
    return torch.from_numpy(order[np.argsort(place, kind="stable")])


def draw_share(
    labels: Int64[Tensor, " n"], share: float, seed: int, stream: str = "test"
) -> Bool[Tensor, " n"]:
    """True for a share of the samples, drawn from every class in proportion.

    Raises:
        ValueError: The share is not in [0, 1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"{stream}_share = {share}: must be in [0, 1)")
    drawn = torch.zeros(len(labels), dtype=torch.bool)
    drawn[stratified_order(labels, seed, stream)[: round(share * len(labels))]] = True
    return drawn


def rank_in_class(classes: np.ndarray) -> np.ndarray:
    """How many members of the same class stand before each element."""
    order = np.argsort(classes, kind="stable")
    ordered = classes[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(classes) else order
    sizes = np.diff(np.r_[starts, len(classes)])
    rank = np.empty(len(classes), np.int64)
    rank[order] = np.arange(len(classes)) - np.repeat(starts, sizes)
    return rank
