"""CycleCluster (Sellars, Aviles-Rivero and Schoenlieb 2021): clusters and labels by turns.

A round makes two sets of labels from the same unit features: clusters y~ (k-means), and
pseudo-labels y^ with certainties omega and class weights zeta (label propagation as in LPDSSL). An
epoch then has two phases, never summed, for one network with max(K, C) outputs:

1. "cluster", all nodes: `L_C = mean CE(f(x_i), y~_i)` (eq. 1);
2. "label": `L_W = mean_L zeta CE(f(x), y) + mean_U zeta omega CE(f(x), y^)` (eq. 6).

zeta has mean 1 over the classes. With `mean_teacher`, the labeled warm-up and phase 2 also ask for
agreement with the averaged network; with `rand_augment`, both phases train on strong views.

Departures: features come from the averaged network; `feature_scale` multiplies the unit features
before the classifier. The paper numbers clusters afresh every epoch ("fresh"), so that the shared
layer must learn other numbers each time; `clusters = "matched"` keeps those of the last round's
clusters, "classes" gives a cluster the number of the class that it overlaps most.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from ...graph_store.solvers import kmeans, match_clusters
from ...graph_store.view import GraphView, NodeState, PseudoLabels
from ..consistency import teacher_consistency
from ..labeling import onehot, targets_and_weight
from ..layers.shared_classifier import SharedClassifier
from ..losses import soft_cross_entropy
from ..method import Batch, Loss, Method, Network, NetworkCall, Phase, ViewName
from ..propagation import propagated_labels

CLUSTER = "cluster"
"""Column of `PseudoLabels.extra`: each node's cluster, -1 = none."""


class CycleCluster(Method):
    """Learns the clusters of its features, then the labels that the graph spreads."""

    clusters: Literal["none", "fresh", "matched", "classes"] = Field(
        "fresh",
        description="none = no clustering phase; matched = numbered like the last round's clusters "
        "that they overlap most, classes = like the classes of the pseudo-labels",
    )
    num_clusters: int = Field(10, ge=1, description="K of k-means")
    cluster_seed: int = Field(0, ge=0, description="draws the first centres of each round")
    cluster_iterations: int = Field(100, ge=1, description="most Lloyd iterations per round")
    feature_scale: float = Field(
        1.0, gt=0, description="length of the features before the classifier"
    )
    alpha: float = Field(0.99, gt=0, lt=1, description="share of the neighbours in propagation")
    gamma: float = Field(3.0, gt=0, description="exponent on similarities")
    tol: float = Field(1e-6, gt=0, description="relative residual at which propagation stops")
    max_iter: int = Field(20, ge=1, description="most products with the affinity per round")
    balance_classes: bool = Field(
        False, description="divide each class's given labels by their number"
    )
    mean_teacher: float = Field(
        0.0, ge=0, description="weight of agreement with the averaged network; 0 = none"
    )
    rampup_epochs: float = Field(5.0, ge=0, description="epochs until that weight is full")
    rand_augment: bool = Field(False, description="train on strong views")

    @property
    def phases(self) -> tuple[Phase, ...]:
        label = Phase("label", "mixed")
        return (label,) if self.clusters == "none" else (Phase("cluster", "all"), label)

    @property
    def warm_up(self) -> Phase:
        """Unlabeled nodes have their say in agreement with the teacher."""
        return Phase("warmup", "mixed" if self.mean_teacher > 0 else "labeled")

    def build(self, backbone: nn.Module, feature_dim: int, num_classes: int) -> Network:
        return SharedClassifier(
            backbone,
            feature_dim,
            num_classes,
            num_outputs=0 if self.clusters == "none" else self.num_clusters,
            scale=self.feature_scale,
        )

    def refresh(self, graph: GraphView, state: NodeState) -> PseudoLabels:
        """Propagation and k-means on the same features; `extra` holds "cluster", too."""
        found = propagated_labels(
            graph,
            state,
            alpha=self.alpha,
            gamma=self.gamma,
            tol=self.tol,
            max_iter=self.max_iter,
            balance_classes=self.balance_classes,
            class_weight="mean",
        )
        if self.clusters == "none":
            return found
        made = kmeans(
            state.features,
            self.num_clusters,
            seed=self.cluster_seed,
            node_ids=graph.node_ids,
            present=state.present,
            all_sum=graph.all_sum,
            all_max=graph.all_max,
            max_iter=self.cluster_iterations,
        )
        ids = made.labels
        like = None
        if self.clusters == "classes":
            like = torch.where(found.weight > 0, found.probs.argmax(dim=1), -1)
        elif self.clusters == "matched" and state.last is not None:
            like = state.last.extra[CLUSTER]
        if like is not None:
            width = max(self.num_clusters, state.probs.shape[1])
            ids = match_clusters(ids, like, width, all_sum=graph.all_sum)
        numbers = {
            "cluster_objective": made.objective,
            "cluster_iterations": float(made.iterations),
        }
        return replace(
            found, extra={**found.extra, CLUSTER: ids}, numbers={**found.numbers, **numbers}
        )

    def loss(self, net: NetworkCall, batch: Batch) -> Loss:
        """`L_C` in the phase "cluster", `L_W` in "label"; before round 0 the labeled rows count."""
        view: ViewName = "strong" if self.rand_augment and batch.pseudo is not None else "weak"
        if batch.phase == "cluster":
            assert batch.pseudo is not None, "the first round precedes the first phase"
            outputs = net(batch.view(view)).outputs
            ids = batch.pseudo.extra[CLUSTER].to(batch.labels)
            total = soft_cross_entropy(outputs, onehot(ids, outputs.shape[1]))
            return Loss(total, {"clustering": total.detach()})
        logits = net(batch.view(view)).logits
        targets, weight = targets_and_weight(batch.labels, batch.pseudo, logits.shape[1])
        if batch.pseudo is not None:
            weight = weight * batch.pseudo.extra["class_weight"].to(weight)
        hard = onehot(targets.argmax(dim=1), logits.shape[1])
        labeled = batch.labels >= 0
        given, spread = (
            soft_cross_entropy(logits[rows], hard[rows], weight[rows])
            for rows in (labeled, ~labeled)
        )
        agreement, parts = teacher_consistency(
            logits, batch, weight=self.mean_teacher, rampup_epochs=self.rampup_epochs
        )
        parts["labeled"] = given.detach()
        if batch.pseudo is not None:
            parts["unlabeled"] = spread.detach()
        return Loss(given + spread + agreement, parts)
