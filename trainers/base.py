"""Base rows for prediction: some training nodes' features, as a network sees them at present."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from ..datasets.base_set import draw_per_class
from .batches import BatchSource
from .method import Base, Network


@torch.no_grad()
def read_base(
    network: Network,
    source: BatchSource,
    labels: Int64[Tensor, " N"],
    per_class: int,
    *,
    num_classes: int,
    chunk: int,
) -> Base:
    """Features of up to `per_class` labeled nodes of each class, drawn once per run.

    Every rank makes all of them: they are few, and this way they are the same on each.

    Args:
        network: In eval mode.
        labels: Given labels of the nodes, -1 = unlabeled.
        chunk: Nodes per forward pass.
    """
    ids = draw_per_class(labels, per_class, seed=source.seed, stream="predict")
    features, given = [], []
    for part in torch.split(ids, chunk):
        batch = source.reader.read(part)
        view = source.views["plain"](batch.inputs.to(source.device), torch.Generator())
        features.append(network.features(view).float())
        given.append(batch.labels.to(source.device))
    return Base(torch.cat(features), torch.cat(given), num_classes)
