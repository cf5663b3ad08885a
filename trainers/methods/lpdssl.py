"""LPDSSL: label propagation for deep semi-supervised learning (Iscen et al., CVPR 2019).

Per round: affinity `max(0, s)^gamma` on the kNN graph of the features, propagation
`(I - alpha S) F = Y`, pseudo-label `argmax F_i` with certainty `omega_i = 1 - H(F_i) / log C`
(scaled by its maximum) and class weight `zeta_j = 1 / |{i : y^_i = j}|` (scaled by its maximum).
Every sample then costs `omega_i zeta_{y^_i} CE` (eq. 11), labeled ones with omega 1.

Departures: features come from the averaged network (the paper's do so in its mean-teacher variant
alone), and the columns of Y are divided by their label counts only with `balance_classes`.

`mean_teacher > 0` is the paper's other variant: predictions also have to agree with those of the
averaged network for other views of the same rows (`consistency.py`).

Further options, all off by default, are those of LaplaceNet (Sellars, Aviles-Rivero and
Schoenlieb, "LaplaceNet: A Hybrid Graph-Energy Neural Network for Deep Semi-Supervised
Classification", 2021): one cross-entropy on aligned graph labels (`align`, `weighted = false`),
averaged over several strong views of each sample (`unlabeled_view`, `num_views`), with `mixup`.
Departures from it: all views go through one forward pass, so that batch norm sees them together;
mixup draws a share per row; alignment is exact (see `aligned`), where LaplaceNet's code repeats a
hundred times a factor within 1 % of one.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from jaxtyping import Bool, Float, Float64, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from ...graph_store.solvers import class_prior_projection, pseudo_labels
from ...graph_store.solvers.reductions import Reduction
from ...graph_store.view import GraphView, NodeState, PseudoLabels
from ..consistency import teacher_consistency
from ..labeling import onehot, targets_and_weight
from ..layers.classifier import LinearClassifier
from ..losses import mix, mixup_pairs, soft_cross_entropy
from ..method import Batch, Loss, Method, Network, NetworkCall, Phase
from ..propagation import propagated_labels
from ..row_views import views_of


class LPDSSL(Method):
    """Propagates labels along the graph of features, trains on all samples by certainty."""

    alpha: float = Field(0.99, gt=0, lt=1, description="share of the neighbours in propagation")
    gamma: float = Field(3.0, gt=0, description="exponent on similarities")
    tol: float = Field(1e-6, gt=0, description="relative residual at which propagation stops")
    max_iter: int = Field(20, ge=1, description="most products with the affinity per round")
    balance_classes: bool = Field(
        False, description="divide each class's given labels by their number"
    )
    align: Literal["none", "labels", "uniform"] = Field(
        "none", description="make the classes as large as among the given labels, or equally large"
    )
    weighted: bool = Field(
        True, description="weigh rows by certainty and class size (omega zeta); else all by 1"
    )
    unlabeled_view: Literal["weak", "strong"] = Field(
        "weak", description="augmentation of the unlabeled rows"
    )
    num_views: int = Field(1, ge=1, description="views of every row whose losses are averaged")
    mixup: float = Field(0.0, ge=0, description="parameter of mixup's Beta; 0 = no mixup")
    mean_teacher: float = Field(
        0.0, ge=0, description="weight of the consistency with the averaged network"
    )
    rampup_epochs: float = Field(
        0.0, ge=0, description="epochs in which the consistency's weight rises to its full value"
    )

    @model_validator(mode="after")
    def _rows_that_the_teacher_knows(self) -> LPDSSL:
        if self.mean_teacher > 0 and self.mixup > 0:
            raise ValueError(
                f"method.mean_teacher = {self.mean_teacher} compares predictions for the same rows "
                f"and method.mixup = {self.mixup} mixes them; set one of the two to 0"
            )
        return self

    @property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("mixed", "mixed"),)

    def build(self, backbone: nn.Module, feature_dim: int, num_classes: int) -> Network:
        return LinearClassifier(backbone, feature_dim, num_classes)

    def refresh(self, graph: GraphView, state: NodeState) -> PseudoLabels:
        """Soft labels, certainties and class weights of `propagated_labels`, aligned if wanted."""
        found = propagated_labels(
            graph,
            state,
            alpha=self.alpha,
            gamma=self.gamma,
            tol=self.tol,
            max_iter=self.max_iter,
            balance_classes=self.balance_classes,
        )
        if self.align != "none":
            found = aligned_labels(graph, state, found, to_labels=self.align == "labels")
        if self.weighted:
            return found
        reached = state.present & (found.extra["score"] > 0)
        one = torch.ones_like(found.weight)
        return replace(
            found,
            weight=torch.where(reached, one, 0.0),
            extra={**found.extra, "class_weight": one},
        )

    def loss(self, net: NetworkCall, batch: Batch) -> Loss:
        """Mean over rows and views of `omega zeta CE` towards the hard (pseudo-)labels.

        With mixup a row is mixed with another, its target with the other's, each with its own
        weight, the same pairs for all views. With `mean_teacher` the first view has to agree with
        the averaged network. Before round 0 only the labeled rows count, and nothing but their
        cross-entropy.
        """
        labeled = batch.labels >= 0
        rows = labeled if batch.pseudo is None else torch.ones_like(labeled)
        partner, share = mixup_pairs(int(rows.sum()), self.mixup, batch.generator)
        partner, share = partner.to(labeled.device), share.to(labeled.device)
        views = [
            views_of(batch, rows, unlabeled=self.unlabeled_view) for _ in range(self.num_views)
        ]
        if self.mixup > 0:
            views = [mix(x, partner, share) for x in views]
        logits = net(torch.cat(views)).logits
        targets, weight = self._targets(batch, logits.shape[1])
        # cross-entropy is linear in the targets: mixing weighted targets mixes weighted losses
        weighted = mix((targets * weight[:, None])[rows], partner, share)
        total = soft_cross_entropy(logits, weighted.repeat(self.num_views, 1))
        if batch.pseudo is None:
            return Loss(total, {"supervised": total.detach()})
        used = (weight[~labeled] > 0).float().mean() if bool((~labeled).any()) else weight.sum() * 0
        agreement, parts = teacher_consistency(
            logits[: len(labeled)],
            batch,
            weight=self.mean_teacher,
            rampup_epochs=self.rampup_epochs,
        )
        parts |= {"classification": total.detach(), "used": used}
        return Loss(total + agreement, parts)

    def _targets(
        self, batch: Batch, num_classes: int
    ) -> tuple[Float[Tensor, "b C"], Float[Tensor, " b"]]:
        """One-hot (pseudo-)labels and the rows' weights."""
        targets, weight = targets_and_weight(batch.labels, batch.pseudo, num_classes)
        if batch.pseudo is None:
            return targets, weight
        weight = weight * batch.pseudo.extra["class_weight"].to(weight)
        return onehot(targets.argmax(dim=1), num_classes), weight


def aligned_labels(
    graph: GraphView, state: NodeState, found: PseudoLabels, *, to_labels: bool
) -> PseudoLabels:
    """A round's labels with classes of the wanted sizes; certainties and class weights follow.

    Args:
        to_labels: The wanted shares are those of the given labels; else all are equal.
    """
    score = found.extra["score"].to(torch.float64)
    num_classes = found.probs.shape[1]
    given = state.labels[state.labels >= 0]
    counts = graph.all_sum(torch.bincount(given, minlength=num_classes)).to(score)
    wanted = counts / counts.sum() if to_labels else torch.full_like(counts, 1 / num_classes)
    # nodes that are absent, or where nothing arrived, do not count
    counted = state.present & (score > 0)
    probs = aligned(found.probs.to(score), state.labels, counted, wanted, all_sum=graph.all_sum)
    made = pseudo_labels(
        probs * score[:, None], state.labels, all_sum=graph.all_sum, all_max=graph.all_max
    )
    return PseudoLabels(
        made.probs.to(torch.float32),
        torch.where(state.present, made.weight, 0.0).to(torch.float32),
        {**found.extra, "class_weight": made.class_weight[made.labels].to(torch.float32)},
        found.numbers,
    )


def aligned(
    probs: Float64[Tensor, "n C"],
    labels: Int64[Tensor, " n"],
    counted: Bool[Tensor, " n"],
    shares: Float64[Tensor, " C"],
    *,
    all_sum: Reduction = lambda x: x,
) -> Float64[Tensor, "n C"]:
    """Each class's probabilities times a factor, such that argmax gives classes of these shares.

    q_ic = p_ic e^(b_c) / sum_j p_ij e^(b_j) with b from `class_prior_projection` of log p: what
    Bayes' rule makes of p when the classes' priors change. ReMixMatch (Berthelot et al., ICLR
    2020, section 3.1) scales classes so too, by the ratio of mean probabilities, in one step.

    Args:
        labels: Given labels, -1 = unlabeled; they are kept, and count.
        counted: Rows of which the shares are counted.
        all_sum: Sum over shards; the identity in one process.
    """
    # far below what a solver can tell from zero, yet a number that can be shifted
    log_p = probs.clamp(min=1e-12).log()
    found = class_prior_projection(log_p[counted], labels[counted], shares, all_sum=all_sum)
    offsets: Tensor = found.offsets
    return (log_p + offsets).softmax(1)
