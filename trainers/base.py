"""Base rows for prediction: some training nodes' features, as a network sees them at present."""

from __future__ import annotations

import torch
from jaxtyping import Int64
from torch import Tensor

from ..datasets.base_set import highest_per_class
from .batches import BatchSource
from .method import Base, Network
from .seeds import derive_seed

_CANDIDATES_PER_ROW = 10  # pseudo-labels that are read for each base row, so that all classes fill


@torch.no_grad()
def read_base(
    network: Network,
    source: BatchSource,
    labels: Int64[Tensor, " N"],
    per_class: int,
    *,
    num_classes: int,
    chunk: int,
    use_pseudo: bool,
) -> Base:
    """Features of up to `per_class` nodes of each class, drawn once per run.

    Every rank makes all of them: they are few, and this way they are the same on each.

    Args:
        network: In eval mode.
        labels: Given labels of the nodes, -1 = unlabeled.
        chunk: Nodes per forward pass.
        use_pseudo: Where a class has fewer given labels, nodes that the store's last round counts
            to it follow.
    """
    rng = torch.Generator().manual_seed(derive_seed(source.seed, "predict"))
    # given labels come before all pseudo-labels
    score = torch.rand(len(labels), generator=rng) + (labels >= 0)
    if use_pseudo:
        some = score.argsort(descending=True)
        labels = _with_pseudo(source, labels, some[: _CANDIDATES_PER_ROW * per_class * num_classes])
    features, known = [], []
    for part in torch.split(highest_per_class(labels, per_class, score), chunk):
        batch = source.reader.read(part)
        view = source.views["plain"](batch.inputs.to(source.device), torch.Generator())
        features.append(network.features(view).float())
        known.append(labels[batch.node_ids].to(source.device))
    return Base(torch.cat(features), torch.cat(known), num_classes)


def _with_pseudo(source: BatchSource, labels: Tensor, candidates: Tensor) -> Tensor:
    """Labels, with those of the store's last round for the unlabeled candidates that count."""
    if source.store is None or not source.store.published():
        return labels
    ids = candidates[labels[candidates] < 0]
    pseudo = source.store.pseudo_labels(ids)
    out = labels.clone()
    out[ids] = torch.where(pseudo.weight > 0, pseudo.probs.argmax(1), -1)
    return out
