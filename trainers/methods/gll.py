"""GLL: a differentiable graph learning layer as the classifier (Brown et al., 2024).

Each micro-batch is a graph: its own rows and some base rows, labeled nodes that come along with
it. The layer (`layers/graph_learning.py`) spreads the base rows' labels over the graph; the loss is
the cross-entropy of what arrives at the batch's own rows, and the gradient goes through the solve,
the weights and the bandwidths back to all features. Predictions are made the same way, with base
rows from the training set (`layers/graph_classifier.py`).

Symbols: U the layer's probabilities, tau Tikhonov, b the base rows.

Supervised (`pseudo = "none"`): batches of labeled nodes. Semi-supervised: unlabeled nodes are
trained towards pseudo-labels from the store's graph of all nodes ("store"), or from the layer on
their weak views ("layer", as FixMatch does with a softmax). `switch_epoch` > 0 trains a linear
head until then, with the same targets.

Departures: a row that is among the base rows of its batch is left out of the loss (it would be its
own neighbour); base rows and batch are disjoint in the paper only by chance. Not in the paper and
off by default: "margin" uncertainty, mixup of a batch's own rows (as DAG has it; without it wrong
pseudo-labels are learnt by heart).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float, Float64
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from ...graph_store import solvers
from ...graph_store.labeling import Propagation, Propagator
from ...graph_store.solvers.acquisition import UncertaintyKind, local_max, uncertainty
from ...graph_store.view import Affinity, GraphView, NodeState, PseudoLabels
from ..attacks import pgd
from ..labeling import onehot, targets_and_weight
from ..layers.classifier import LinearClassifier
from ..layers.graph_classifier import GraphClassifier, log_probs_with_base
from ..layers.graph_learning import GraphLearningLayer
from ..losses import log_probs, mix, mixup_pairs
from ..method import (
    BASE_SCORE,
    Base,
    BaseDraw,
    Batch,
    Loss,
    Method,
    Network,
    NetworkCall,
    Phase,
)


class Adversarial(BaseModel):
    """PGD training, in the units of the network's inputs (images lie in -1..1).

    The attack's own forward passes are training passes: batch norm's running averages see them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    eps: float = Field(gt=0, description="largest change of a value")
    steps: int = Field(5, ge=1, description="steps of the attack")
    step_size: float = Field(0.01, gt=0, description="change of a value per step")
    low: float = Field(-1.0, description="least valid value; -inf = unbounded")
    high: float = Field(1.0, description="largest valid value; inf = unbounded")

    def move(
        self, loss_of: Callable[[Tensor], Tensor], inputs: Tensor, generator: torch.Generator
    ) -> Tensor:
        """The inputs, moved so that the loss grows."""
        return pgd(
            loss_of,
            inputs.clamp(self.low, self.high),
            eps=self.eps,
            step_size=self.step_size,
            steps=self.steps,
            generator=generator,
            low=self.low,
            high=self.high,
        ).inputs


class GLL(Method):
    """Trains through the graph learning layer instead of a softmax head."""

    k: int = Field(24, ge=1, description="neighbours in a batch's graph, without the row itself")
    tau: float = Field(0.0, ge=0, description="Tikhonov term: predictions decay away from labels")
    bandwidth: Literal["self_tuning"] | float = Field(
        "self_tuning", description="of the weights: self-tuning, or one constant"
    )
    p: float = Field(2.0, ge=2, description="of the graph p-Laplacian; 2 = Laplace learning")
    base_per_class: int = Field(10, ge=1, description="base rows of each class in a micro-batch")
    base_every: Literal["epoch", "step"] = Field(
        "epoch", description="how often base rows are drawn anew"
    )
    base_choice: Literal["random", "entropy", "l2", "margin"] = Field(
        "random", description="drawn, or the least certain of the last round"
    )
    local_max: bool = Field(
        False, description="of the least certain, take first those that are so among neighbours"
    )
    predict_per_class: int = Field(
        100, ge=1, description="base rows of each class behind predictions"
    )
    predict_given: bool = Field(
        False, description="base rows of prediction have given labels, never the last round's"
    )
    switch_epoch: int = Field(0, ge=0, description="a linear head is trained until this epoch")
    pseudo: Literal["none", "store", "layer"] = Field(
        "store", description="where unlabeled nodes' targets come from; none = labeled nodes alone"
    )
    solver: str = Field(
        "poisson", description="labels the store's graph: one of graph_store.labeling.METHODS"
    )
    threshold: float = Field(
        0.0, ge=0, le=1, description="certainty below which a pseudo-label is not used"
    )
    unlabeled_view: Literal["weak", "strong"] = Field(
        "weak", description="augmentation of the unlabeled rows"
    )
    mixup: float = Field(0.0, ge=0, description="parameter of mixup's Beta; 0 = no mixup")
    adversarial: Adversarial | None = Field(
        None, description="train on inputs moved by projected gradient descent"
    )

    @model_validator(mode="after")
    def _fits(self) -> GLL:
        if self.local_max and self.base_choice == "random":
            raise ValueError(
                "method.local_max = true needs an uncertainty; set method.base_choice = 'entropy', "
                "'l2' or 'margin'"
            )
        Propagation(self.solver)
        if self.bandwidth != "self_tuning" and not self.bandwidth > 0:
            raise ValueError(f"method.bandwidth = {self.bandwidth}: must be > 0 or 'self_tuning'")
        return self

    @property
    def phases(self) -> tuple[Phase, ...]:
        """First with a linear head, where there is a switch; then with the layer."""
        nodes: Literal["labeled", "mixed"] = "labeled" if self.pseudo == "none" else "mixed"
        graph = Phase("graph", nodes, base=self._draw)
        return (Phase("linear", nodes), graph) if self.switch_epoch else (graph,)

    def phases_at(self, epoch: int) -> tuple[Phase, ...]:
        return self.phases[:1] if epoch < self.switch_epoch else self.phases[-1:]

    @property
    def warm_up(self) -> Phase:
        return Phase("warmup", "labeled", base=None if self.switch_epoch else self._draw)

    @property
    def uses_graph(self) -> bool:
        """Rounds make pseudo-labels, or tell which nodes are uncertain."""
        return self.pseudo == "store" or self.base_choice != "random"

    def predict_base(self, epochs: int) -> int:
        """None as long as the linear head is what has been trained."""
        return (
            0 if self.switch_epoch > 0 and epochs <= self.switch_epoch else self.predict_per_class
        )

    @property
    def predict_from_pseudo(self) -> bool:
        return self.pseudo == "store" and not self.predict_given

    def build(self, backbone: nn.Module, feature_dim: int, num_classes: int) -> Network:
        """The layer has no weights; the linear head is trained before a switch alone."""
        return LinearClassifier(backbone, feature_dim, num_classes)

    def predictor(self, network: Network, base: Base) -> Network:
        return GraphClassifier(network, self._layer, base)

    def refresh(self, graph: GraphView, state: NodeState) -> PseudoLabels:
        """Labels spread over the graph of all nodes, and which labeled nodes are uncertain.

        Certainties are those of LPDSSL (1 - entropy / log C, scaled by their maximum); those below
        `threshold` count as 0. `extra["base_score"]` is there where base rows are chosen by it.
        """
        num_classes = state.probs.shape[1]
        found = Propagator(graph, Propagation(self.solver)).solve(state.labels, num_classes)
        made = solvers.pseudo_labels(
            found.probs, state.labels, all_sum=graph.all_sum, all_max=graph.all_max
        )
        usable = state.present & (made.weight >= self.threshold)
        extra = {}
        if self.base_choice != "random":
            around = word_of_neighbors(graph.affinity("self_tuning"), found.probs)
            extra[BASE_SCORE] = base_score(
                graph, state, around, self.base_choice, prefer_peaks=self.local_max
            )
        return PseudoLabels(
            made.probs.to(torch.float32),
            torch.where(usable, made.weight, 0.0).to(torch.float32),
            extra,
        )

    def loss(self, net: NetworkCall, batch: Batch) -> Loss:
        """Mean over rows of `-weight log(U_y + 1e-8)`; of a softmax where there are no base rows.

        Labeled rows have weight 1, pseudo-labeled ones their certainty; rows that are base rows of
        this batch, too, have weight 0 (unless nothing else is left) but stay in the graph.
        """
        order = torch.argsort(batch.labels < 0, stable=True)
        num_labeled = int((batch.labels >= 0).sum())
        base = None if batch.base is None else batch.base.view("weak")
        guessed = self._guess(net, batch, order[num_labeled:], base)
        inputs = batch.view("weak", order[:num_labeled])
        if num_labeled < len(order):
            unlabeled = batch.view(self.unlabeled_view, order[num_labeled:])
            inputs = torch.cat([inputs, unlabeled])
        partner, share = mixup_pairs(len(inputs), self.mixup, batch.generator)
        partner, share = partner.to(inputs.device), share.to(inputs.device)
        inputs = mix(inputs, partner, share) if self.mixup > 0 else inputs

        def loss_of(x: Tensor) -> tuple[Tensor, Tensor]:
            outputs = self._log_probs(net, x, batch, base)
            targets, weight = self._targets(batch, order, outputs.shape[1], guessed)
            # cross-entropy is linear in the targets: mixing weighted targets mixes weighted losses
            weighted = mix(targets * weight[:, None], partner, share)
            return -(weighted * outputs).sum() / max(1, len(x)), weight

        if self.adversarial is not None:
            inputs = self.adversarial.move(lambda x: loss_of(x)[0], inputs, batch.generator)
        total, weight = loss_of(inputs)
        used = (weight[num_labeled:] > 0).float().sum() / max(1, len(order) - num_labeled)
        return Loss(total, {"classification": total.detach(), "used": used})

    @property
    def _draw(self) -> BaseDraw:
        return BaseDraw(self.base_per_class, self.base_every, self.base_choice != "random")

    @property
    def _layer(self) -> GraphLearningLayer:
        return GraphLearningLayer(
            k=self.k, tau=self.tau, bandwidth=self.bandwidth, p=self.p, on_unreached="uniform"
        )

    def _log_probs(
        self, net: NetworkCall, inputs: Tensor, batch: Batch, base: Tensor | None
    ) -> Float[Tensor, "b C"]:
        """Of the rows of `inputs`; base rows go through the network beside them."""
        if base is None or batch.base is None:
            return log_probs(net(inputs).logits)
        out = net(torch.cat([inputs, base]))
        own, beside = out.features[: len(inputs)], out.features[len(inputs) :]
        rows = Base(beside, batch.base.labels, out.logits.shape[1])
        return log_probs_with_base(self._layer, own, rows)

    def _guess(
        self, net: NetworkCall, batch: Batch, unlabeled: Tensor, base: Tensor | None
    ) -> Tensor | None:
        """What the network says of the unlabeled rows' weak views; None where it is not asked."""
        if self.pseudo != "layer" or not len(unlabeled):
            return None
        with torch.no_grad():
            return self._log_probs(net, batch.view("weak", unlabeled), batch, base).exp()

    def _targets(
        self, batch: Batch, order: Tensor, num_classes: int, guessed: Tensor | None
    ) -> tuple[Float[Tensor, "b C"], Float[Tensor, " b"]]:
        """Hard targets and weights of the rows, labeled ones first."""
        pseudo = batch.pseudo if self.pseudo == "store" else None
        targets, weight = targets_and_weight(batch.labels, pseudo, num_classes)
        targets, weight = targets[order], weight[order]
        if guessed is not None:
            start = len(order) - len(guessed)
            targets = torch.cat([targets[:start], guessed])
            certain = (guessed.max(1).values >= self.threshold).to(weight)
            weight = torch.cat([weight[:start], certain])
        hard = onehot(targets.argmax(1), num_classes)
        if batch.base is None:
            return hard, weight
        others = ~torch.isin(batch.node_ids[order], batch.base.node_ids)
        alone = ~(others & (weight > 0)).any()
        return hard, weight * (others | alone)


def word_of_neighbors(weights: Affinity, probs: Float64[Tensor, "n C"]) -> Float64[Tensor, "n C"]:
    """What its neighbours say about each node: `sum_j w_ij U_j / d_i`; zero without edges.

    That is Laplace learning without node i itself, exactly where all its neighbours are labeled.
    """
    return weights.matmul(probs) / weights.degrees.clamp(min=1e-300)[:, None]


def base_score(
    graph: GraphView,
    state: NodeState,
    around: Float[Tensor, "n C"],
    kind: UncertaintyKind,
    *,
    prefer_peaks: bool,
) -> Float[Tensor, " n"]:
    """How much a labeled node is wanted as a base row; -1 for other nodes. Collective.

    Args:
        around: See `word_of_neighbors`.
        prefer_peaks: The nodes that none of their labeled neighbours surpasses (LocalMax) come
            before all others; no two of them are neighbours.
    """
    among = state.labeled & state.present
    score = uncertainty(around, kind)
    if prefer_peaks:
        # no uncertainty is larger than log C or 1
        score = score + local_max(graph, score, among) * (1 + math.log(around.shape[1]))
    return torch.where(among, score, -1.0).to(torch.float32)
