"""DAG: density-aware graph for deep semi-supervised recognition (Li et al., CVPR 2020).

A round labels nodes along density-ascending paths (DPLP, algorithm 1); training classifies each
sample from its own feature and its neighbours' (DNA, `layers/neighbor_attention.py`).

Symbols: B the label bank (`NodeState.probs`), rho density, sigma the longest step of a path,
lambda the weight of the regulariser R, h number of hops.

Where the paper is silent, always: banks are filled by the averaged network; a mixed sample sees the
neighbours of both its parents, its share drawn per row; R looks at the mixed predictions.

Departures, all off by default:
- `paths = "join"`: a node whose path meets the path of a labeled node takes the label found there.
- `unlabeled_view = "strong"`: unlabeled rows are trained on strong views. The paper knows only
  flips and crops; with a handful of labels per class the network then repeats its own mistakes.
- `pseudo_weight = "agreement"`: a label that came along a path weighs as much as the label bank
  believes it, so that paths which leave their class cost little.
- `bank_temperature < 1` sharpens the bank's rows where they are trained on.
"""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Int64
from pydantic import Field
from torch import Tensor, nn

from ...graph_store.solvers import DensityPaths, density_paths
from ...graph_store.view import GraphView, Neighborhood, NodeState, PseudoLabels
from ..labeling import normalize_rows_to_one, onehot, targets_and_weight
from ..layers.neighbor_attention import NeighborClassifier, join_neighborhoods
from ..losses import entropy_and_balance, mix, mixup_pairs, soft_cross_entropy
from ..method import OWN_PREDICTION, Batch, Loss, Method, Network, NetworkCall, Phase
from ..row_views import views_of

LABELED, BELOW, ABOVE, BANK, JOINED = 0, 1, 2, 3, 4
"""Where a node's label came from: given, LP-L, LP-LU, the label bank, a path that is joined."""


class DAG(Method):
    """Density paths label the nodes; neighbours' features help to classify them."""

    hops: int = Field(1, ge=0, le=3, description="depth of the aggregated neighbourhood")
    use_density: bool = Field(True, description="add the neighbours' density to the attention")
    paths: Literal["none", "l", "lu", "join"] = Field(
        "lu",
        description="labels from labeled nodes below only (l), also from above (lu), or also from "
        "where the path joins another one's (join)",
    )
    sigma: float = Field(1.0, ge=0, le=2, description="longest step of a path (unit features)")
    regularizer: float = Field(
        0.1, ge=0, description="weight of entropy minimisation and class balance (lambda)"
    )
    mixup: float = Field(1.0, ge=0, description="parameter of mixup's Beta; 0 = no mixup")
    bank_weight: float = Field(
        1.0, ge=0, le=1, description="weight of nodes that keep the network's own prediction"
    )
    bank_temperature: float = Field(
        1.0, gt=0, le=1, description="sharpens the network's own predictions as targets"
    )
    pseudo_weight: Literal["one", "agreement"] = Field(
        "one", description="weight of a label from a path"
    )
    unlabeled_view: Literal["weak", "strong"] = Field(
        "weak", description="augmentation of the unlabeled rows"
    )

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("mixed", "mixed", hops=self.hops),)

    @property
    def predict_hops(self) -> int:
        return self.hops

    def build(self, backbone: nn.Module, feature_dim: int, num_classes: int) -> Network:
        return NeighborClassifier(
            backbone, feature_dim, num_classes, hops=self.hops, use_density=self.use_density
        )

    def refresh(self, graph: GraphView, state: NodeState) -> PseudoLabels:
        """DPLP (algorithm 1); nodes that no path reaches keep their row of the label bank.

        `extra` holds "source" (0 labeled, 1 LP-L, 2 LP-LU, 3 bank, 4 joined), "parent" and
        "path_length".
        """
        paths = density_paths(graph, state.labels, sigma=self.sigma, density=state.density)
        given, source = self._path_labels(graph, paths)
        bank = normalize_rows_to_one(state.probs ** (1 / self.bank_temperature))
        labels = torch.where(source == BANK, -1, given)
        probs = torch.where((labels >= 0)[:, None], onehot(labels, bank.shape[1]).to(bank), bank)
        weight = torch.where(source == BANK, self.bank_weight, 1.0).to(probs.dtype)
        if self.pseudo_weight == "agreement":
            believed = state.probs.gather(1, labels.clamp(min=0)[:, None])[:, 0].clamp(0, 1)
            on_path = (source != LABELED) & (source != BANK)
            weight = torch.where(on_path, believed.to(weight), weight)
        usable = state.present & (probs.sum(dim=1) > 0)
        extra = {
            "source": source,
            "parent": paths.parent,
            "path_length": paths.path_length,
            OWN_PREDICTION: source == BANK,
        }
        return PseudoLabels(probs, torch.where(usable, weight, 0.0), extra)

    def _path_labels(self, graph: GraphView, paths: DensityPaths) -> tuple[Tensor, Tensor]:
        """Labels and their sources; the ablations' variants forget what they do not use."""
        labels, source = paths.labels, paths.source
        if self.paths == "none":
            return labels, torch.where(source == LABELED, LABELED, BANK)
        if self.paths == "l":
            return labels, torch.where(source == ABOVE, BANK, source)
        if self.paths == "join":
            joined = labels_where_paths_join(graph, paths.parent, labels)
            source = torch.where((labels < 0) & (joined >= 0), JOINED, source)
            labels = joined
        return labels, source

    def loss(self, net: NetworkCall, batch: Batch) -> Loss:
        """`CE(h(DNA(f(x))), B) + lambda R` (eqs. 1-2), with mixup.

        The cross-entropy of a mixed row is the mix of both parents', each with its own weight.
        R looks at the same mixed predictions, one forward pass for both (as in Arazo et al.,
        "Pseudo-Labeling and Confirmation Bias", 2019, from where the regulariser comes).
        Before round 0 only the labeled rows count.
        """
        labeled = batch.labels >= 0
        rows = labeled if batch.pseudo is None else torch.ones_like(labeled)
        inputs = views_of(batch, rows, unlabeled=self.unlabeled_view)
        neighborhood = None if batch.pseudo is None else batch.neighborhood
        partner, share = mixup_pairs(inputs.shape[0], self.mixup, batch.generator)
        partner, share = partner.to(inputs.device), share.to(inputs.device)
        if self.mixup > 0:
            inputs = mix(inputs, partner, share)
            neighborhood = _joined(neighborhood, partner)
        logits = net(inputs, neighborhood).logits
        targets, weight = targets_and_weight(batch.labels[rows], batch.pseudo, logits.shape[1])
        # cross-entropy is linear in the targets: mixing weighted targets mixes weighted losses
        weighted = mix(targets * weight[:, None], partner, share)
        classification = soft_cross_entropy(logits, weighted)
        entropy, balance = entropy_and_balance(logits)
        parts = {"classification": classification, "entropy": entropy, "balance": balance}
        total = classification + self.regularizer * (entropy + balance)
        return Loss(total, {name: part.detach() for name, part in parts.items()})


def labels_where_paths_join(
    graph: GraphView, parent: Int64[Tensor, " n"], labels: Int64[Tensor, " n"]
) -> Int64[Tensor, " n"]:
    """Label of the first labeled node on each node's path, itself included; -1 where none is.

    Pointer jumping: after t rounds `ahead` is the 2^t-th node up the path, or the first labeled
    one, or the path's end, where it stays. Collective.
    """
    ahead = torch.where((labels >= 0) | (parent < 0), graph.node_ids, parent)
    while True:
        further = graph.gather(ahead, ahead)
        if int(graph.all_sum((further != ahead).sum())) == 0:
            return graph.gather(labels, ahead)
        ahead = further


def _joined(neighborhood: Neighborhood | None, partner: Int64[Tensor, " b"]) -> Neighborhood | None:
    if neighborhood is None or not neighborhood.hops:
        return None
    return join_neighborhoods(neighborhood, partner)
