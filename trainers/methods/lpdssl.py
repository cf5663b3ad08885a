"""LPDSSL: label propagation for deep semi-supervised learning (Iscen et al., CVPR 2019).

Per round: affinity `max(0, s)^gamma` on the kNN graph of the features, propagation
`(I - alpha S) F = Y`, pseudo-label `argmax F_i` with certainty `omega_i = 1 - H(F_i) / log C`
(scaled by its maximum) and class weight `zeta_j = 1 / |{i : y^_i = j}|` (scaled by its maximum).
Every sample then costs `omega_i zeta_{y^_i} CE` (eq. 11), labeled ones with omega 1.

Departures: features come from the averaged network (the paper's do so in its mean-teacher variant
alone), and the columns of Y are divided by their label counts only with `balance_classes`.
"""

from __future__ import annotations

import torch
from pydantic import Field
from torch import nn

from ...graph_store.solvers import local_global, pseudo_labels
from ...graph_store.solvers.conjugate_gradient import CgResult
from ...graph_store.view import GraphView, NodeState, PseudoLabels
from ..labeling import onehot, targets_and_weight
from ..layers.classifier import LinearClassifier
from ..losses import soft_cross_entropy
from ..method import Batch, Loss, Method, Network, NetworkCall, Phase


class LPDSSL(Method):
    """Propagates labels along the graph of features, trains on all samples by certainty."""

    alpha: float = Field(0.99, gt=0, lt=1, description="share of the neighbours in propagation")
    gamma: float = Field(3.0, gt=0, description="exponent on similarities")
    tol: float = Field(1e-6, gt=0, description="relative residual at which propagation stops")
    max_iter: int = Field(20, ge=1, description="most products with the affinity per round")
    balance_classes: bool = Field(
        False, description="divide each class's given labels by their number"
    )

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("mixed", "mixed"),)

    def build(self, backbone: nn.Module, feature_dim: int, num_classes: int) -> Network:
        return LinearClassifier(backbone, feature_dim, num_classes)

    def refresh(self, graph: GraphView, state: NodeState) -> PseudoLabels:
        """Soft labels, certainties and class weights from propagation, started at the last round's.

        `extra["class_weight"]` is zeta of each node's (pseudo-)label, `extra["score"]` the sum of
        its scores: with the probabilities it gives back the scores, where the next solve starts.
        """
        affinity = graph.affinity("power", gamma=self.gamma)
        solves: list[CgResult] = []
        last = state.last
        scores = local_global(
            affinity,
            state.labels,
            num_classes=state.probs.shape[1],
            alpha=self.alpha,
            balance_classes=self.balance_classes,
            tol=self.tol,
            max_iter=self.max_iter,
            x0=None if last is None else last.probs * last.extra["score"][:, None],
            on_solve=solves.append,
        )
        found = pseudo_labels(scores, state.labels, all_sum=graph.all_sum, all_max=graph.all_max)
        weight = torch.where(state.present, found.weight, 0.0)
        class_weight = found.class_weight[found.labels]
        return PseudoLabels(
            found.probs.to(torch.float32),
            weight.to(torch.float32),
            {
                "class_weight": class_weight.to(torch.float32),
                "score": scores.clamp(min=0).sum(1).to(torch.float32),
            },
            {
                "solve_iterations": float(solves[0].iterations),
                "solve_residual": float(solves[0].residuals.max()),
            },
        )

    def loss(self, net: NetworkCall, batch: Batch) -> Loss:
        """Mean over rows of `omega zeta CE` towards the hard (pseudo-)labels.

        Before round 0 only the labeled rows count, without class weights.
        """
        labeled = batch.labels >= 0
        if batch.pseudo is None:
            logits = net(batch.view("weak", labeled)).logits
            total = soft_cross_entropy(logits, onehot(batch.labels[labeled], logits.shape[1]))
            return Loss(total, {"supervised": total.detach()})
        logits = net(batch.view("weak")).logits
        targets, weight = targets_and_weight(batch.labels, batch.pseudo, logits.shape[1])
        hard = onehot(targets.argmax(dim=1), logits.shape[1])
        weight = weight * batch.pseudo.extra["class_weight"].to(weight)
        total = soft_cross_entropy(logits, hard, weight)
        used = (weight[~labeled] > 0).float().mean() if bool((~labeled).any()) else weight.sum() * 0
        return Loss(total, {"classification": total.detach(), "used": used})
