"""DAG's density-aware neighbourhood aggregation (DNA) and the classifier on top of it.

Li et al., "Density-Aware Graph for Deep Semi-Supervised Visual Recognition", CVPR 2020, eqs. 4-7.
Symbols: f features, f~ = f / |f|, p_uv = f~_u . f~_v similarity, rho_v density of neighbour v,
a_uv attention weight, W_A, b_A the layer's own parameters, h number of hops.

A neighbourhood arrives as levels of distinct nodes (`Neighborhood.hops`), not as a tree with
copies: a node that hangs in the tree many times is aggregated once per level. Features of
neighbours come from the store's bank and carry no gradient; the root's does.

Departures, where the paper is silent:
- one pair (W_A, b_A) per level (it does not say whether levels share them);
- weights a_uv are taken from features before aggregation on every level, so that a similarity
  means the same everywhere; the values that are summed are the aggregated ones;
- W_A starts as half the identity, b_A as 0: the layer starts as the mean of a feature and its
  neighbourhood. A random start would scramble features that were trained without neighbours
  (the start from the labeled samples), too much to mend with four labels per class;
- a node without neighbours gets W_A f_u + b_A.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from ...graph_store.view import Hop, Neighborhood
from ..method import Network


def attention_weights(
    features: Float[Tensor, "n D"],
    neighbor_features: Float[Tensor, "m D"],
    density: Float[Tensor, " m"] | None,
    index: Int64[Tensor, "n k"],
) -> Float[Tensor, "n k"]:
    """Softmax over each row's existing neighbours of `p_uv + rho_v` (eqs. 5-7).

    Args:
        density: Of the neighbours; None for the variant without density (eq. 5).
        index: Row of each neighbour in `neighbor_features`; -1 where there is none.

    Returns:
        Rows sum to 1, or are 0 where a node has no neighbours; 0 at every -1.
    """
    if neighbor_features.shape[0] == 0:
        return features.new_zeros(index.shape)
    exists = index >= 0
    rows = index.clamp(min=0)
    unit = nn.functional.normalize(features, dim=1)
    neighbor_unit = nn.functional.normalize(neighbor_features, dim=1)
    # a product of rows instead of n x m similarities: m grows with every hop, k does not
    score = torch.bmm(neighbor_unit[rows], unit[:, :, None]).squeeze(2)
    if density is not None:
        score = score + density.to(score.dtype)[rows]
    # not -inf: a row without neighbours would become NaN
    score = score.masked_fill(~exists, torch.finfo(score.dtype).min)
    return score.softmax(dim=1) * exists


def weighted_sum(
    values: Float[Tensor, "m D"],
    weights: Float[Tensor, "n k"],
    index: Int64[Tensor, "n k"],
) -> Float[Tensor, "n D"]:
    """Rows `sum_v weights_uv values_v`; -1 in `index` adds nothing."""
    if values.shape[0] == 0:
        return values.new_zeros(index.shape[0], values.shape[1])
    picked = values[index.clamp(min=0)]
    return torch.bmm(weights[:, None, :], picked).squeeze(1)


class NeighborAttention(nn.Module):
    """Aggregates `hops` levels of neighbours into the roots' features, leaves first.

    Cost: `n k D` numbers gathered per level of n nodes.
    """

    def __init__(self, feature_dim: int, hops: int, *, use_density: bool = True) -> None:
        super().__init__()
        self.hops = hops
        self.use_density = use_density
        self.levels = nn.ModuleList(nn.Linear(feature_dim, feature_dim) for _ in range(hops))
        for level in self.levels:
            assert isinstance(level, nn.Linear)
            nn.init.eye_(level.weight).data.mul_(0.5)
            nn.init.zeros_(level.bias)

    def forward(
        self, features: Float[Tensor, "b D"], neighborhood: Neighborhood | None
    ) -> Float[Tensor, "b D"]:
        """`f'_u = W (f_u + sum_v a_uv f'_v) + b`, from the leaves (f' = f) to the roots.

        Args:
            features: The roots'.
            neighborhood: None = no root has neighbours.

        Raises:
            ValueError: The neighbourhood is not `hops` levels deep.
        """
        if self.hops == 0:
            return features
        if neighborhood is None:
            out: Tensor = self.levels[0](features)
            return out
        hops = neighborhood.hops
        if len(hops) != self.hops:
            raise ValueError(
                f"the neighbourhood has {len(hops)} hops but the layer was built for "
                f"{self.hops}; ask the store for hops={self.hops}"
            )
        own = [features, *(hop.features.to(features.dtype) for hop in hops)]
        values = own[-1]
        for level in reversed(range(self.hops)):
            summed = self._neighbors(own[level], own[level + 1], values, hops[level])
            values = self.levels[level](own[level] + summed)
        return values

    def _neighbors(self, own: Tensor, below: Tensor, values: Tensor, hop: Hop) -> Tensor:
        density = hop.density if self.use_density else None
        weights = attention_weights(own, below, density, hop.index)
        return weighted_sum(values.to(weights.dtype), weights, hop.index)


class NeighborClassifier(Network):
    """`logits = classifier(DNA(backbone(x)))`; with 0 hops the plain classifier."""

    def __init__(
        self,
        backbone: nn.Module,
        feature_dim: int,
        num_classes: int,
        *,
        hops: int,
        use_density: bool = True,
    ) -> None:
        super().__init__()
        self.feature_dim = feature_dim
        self.backbone = backbone
        self.attention = NeighborAttention(feature_dim, hops, use_density=use_density)
        self.classifier = nn.Linear(feature_dim, num_classes)

    def features(self, inputs: Tensor) -> Float[Tensor, "b D"]:
        out: Tensor = self.backbone(inputs)
        return out

    def head(
        self, features: Float[Tensor, "b D"], neighborhood: Neighborhood | None
    ) -> Float[Tensor, "b C"]:
        out: Tensor = self.classifier(self.attention(features, neighborhood))
        return out


def join_neighborhoods(a: Neighborhood, partner: Int64[Tensor, " b"]) -> Neighborhood:
    """Each root's neighbours together with those of root `partner`, for mixed samples.

    A neighbour that both have is there twice, and so weighs twice.
    """
    first = a.hops[0]
    index = torch.cat([first.index, first.index[partner]], dim=1)
    joined = Hop(index, first.node_ids, first.features, first.density)
    return Neighborhood((joined, *a.hops[1:]))
