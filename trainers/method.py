"""The one place where methods and the loop meet.

A method is a frozen, self-checking set of hyperparameters with at most three functions: `build`
(the network), `refresh` (what a round makes of the graph) and `loss` (what a micro-batch costs).
One method is one file in `methods/` and one TOML in `configs/`; `find_method` imports it by name.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float, Int64
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from ..graph_store.view import GraphView, Neighborhood, NodeState, PseudoLabels

OWN_PREDICTION = "own_prediction"
"""Optional column of `PseudoLabels.extra`: true where a row is the network's own prediction, kept
by the method, and so no word of the graph."""

BASE_SCORE = "base_score"
"""Optional column of `PseudoLabels.extra`: which labeled nodes are to be base rows, highest first
(see `BaseDraw`)."""

ViewName = Literal["plain", "weak", "strong"]
Nodes = Literal["labeled", "unlabeled", "mixed", "all"]


@dataclass(frozen=True)
class BaseDraw:
    """Which labeled nodes come along with each micro-batch of a phase, as many of every class.

    Attributes:
        per_class: Base rows of each class; fewer where it has fewer than twice as many labels.
        every: How often they are drawn anew.
        by_score: Take those with the highest `BASE_SCORE` of the last round instead of drawing;
            they are drawn where no round has been published.
    """

    per_class: int
    every: Literal["epoch", "step"] = "epoch"
    by_score: bool = False


@dataclass(frozen=True)
class Phase:
    """Part of an epoch with its own nodes and loss.

    Attributes:
        name: Handed to `Method.loss` in the batch.
        nodes: "labeled": batch_size labeled nodes; "mixed": labeled_per_batch labeled ones followed
            by unlabeled ones; "unlabeled", "all": batch_size of these. An epoch of "labeled" has as
            many steps as one of "mixed", so that budgets are comparable.
        hops: Depth of the neighbourhood that comes with each batch; 0 = none.
        base: Base rows that come with each batch; None = none.
    """

    name: str
    nodes: Nodes
    hops: int = 0
    base: BaseDraw | None = None


@dataclass(frozen=True)
class ModelOutput:
    """What a network says about some inputs.

    Attributes:
        outputs: Everything that the classifier gives; the logits are its first C columns (all of
            them, unless the classifier serves another task too).
    """

    features: Float[Tensor, "b D"]
    logits: Float[Tensor, "b C"]
    outputs: Float[Tensor, "b M"]


class Network(nn.Module, ABC):
    """Backbone and classifier; the classifier may look at neighbours from the store."""

    feature_dim: int

    @abstractmethod
    def features(self, inputs: Tensor) -> Float[Tensor, "b D"]:
        """What goes into the store's feature bank."""

    @abstractmethod
    def head(
        self, features: Float[Tensor, "b D"], neighborhood: Neighborhood | None
    ) -> Float[Tensor, "b C"]:
        """Logits; `neighborhood` is rooted at the rows of `features`."""

    def forward(self, inputs: Tensor, neighborhood: Neighborhood | None = None) -> ModelOutput:
        features = self.features(inputs)
        logits = self.head(features, neighborhood)
        return ModelOutput(features, logits, logits)


NetworkCall = Callable[..., ModelOutput]
"""`net(inputs, neighborhood=None)`: a Network or an engine around one."""


@dataclass(frozen=True)
class BaseRows:
    """Labeled nodes that stand beside a micro-batch as examples of their classes.

    Attributes:
        view: Like `Batch.view`, of these rows, from the same generator.
    """

    node_ids: Int64[Tensor, " m"]
    labels: Int64[Tensor, " m"]
    view: Callable[..., Tensor]


@dataclass(frozen=True)
class Base:
    """Features and labels of training nodes that predictions are made from.

    Attributes:
        num_classes: C; not every class needs to be among the labels.
    """

    features: Float[Tensor, "m D"]
    labels: Int64[Tensor, " m"]
    num_classes: int


@dataclass(frozen=True)
class Batch:
    """One micro-batch as a method's loss sees it. All tensors lie on the training device.

    Attributes:
        phase: Name of the phase.
        node_ids, labels: Labels are the given ones; -1 = unlabeled. "mixed": labeled rows first.
        pseudo: Pseudo-labels of these rows in the last published round; None before round 0.
        neighborhood: Rooted at these rows; None where the phase has no hops or before round 0.
        view: `view("strong")` or `view("weak", rows)`: normalised float inputs `b c h w`; drawn
            afresh from `generator` at each call. `rows` is a boolean mask or indices.
        generator: The only source of randomness (CPU), a function of seed, step and micro-batch.
        base: Labeled nodes beside these rows; None where the phase asks for none.
        epoch: Where the run stands, in epochs: 2.5 = half-way through the third.
        teacher: The averaged network as it is before this step, in eval mode and without
            gradients: batch norm uses its averaged statistics. None only in tests of losses.
        statistics: The method's running statistics (see `Method.statistics`) before this step.
    """

    phase: str
    node_ids: Int64[Tensor, " b"]
    labels: Int64[Tensor, " b"]
    pseudo: PseudoLabels | None
    neighborhood: Neighborhood | None
    view: Callable[..., Tensor]
    generator: torch.Generator
    base: BaseRows | None = None
    epoch: float = 0.0
    teacher: NetworkCall | None = None
    statistics: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Loss:
    """What a micro-batch costs.

    Attributes:
        total: What is minimised.
        parts: Detached scalars that are logged by name.
        statistics: This micro-batch's values of the method's running statistics.
    """

    total: Float[Tensor, ""]
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    statistics: Mapping[str, Tensor] = field(default_factory=dict)


class Method(BaseModel, ABC):
    """Frozen hyperparameters of a method. Subclasses declare them as pydantic fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    @abstractmethod
    def phases(self) -> tuple[Phase, ...]:
        """Phases of one epoch, in order."""

    def phases_at(self, epoch: int) -> tuple[Phase, ...]:
        """Those of the phases that epoch `epoch` has, in order."""
        return self.phases

    @property
    def warm_up(self) -> Phase:
        """The phase before the first round; over labeled nodes."""
        return Phase("warmup", "labeled")

    @property
    def uses_graph(self) -> bool:
        """False: no features are put and no graph is built (no refresh rounds)."""
        return True

    @property
    def needs_frozen_backbone(self) -> bool:
        """Whether the method reads features as they come and trains nothing before them."""
        return False

    @property
    def predict_hops(self) -> int:
        """Depth of the neighbourhood that prediction needs from the store; 0 = none."""
        return 0

    def predict_base(self, epochs: int) -> int:
        """Base rows of each class that prediction needs after `epochs` epochs; 0 = none."""
        return 0

    @property
    def predict_from_pseudo(self) -> bool:
        """Whether nodes with pseudo-labels of the last round may be base rows of prediction."""
        return False

    def predictor(self, network: Network, base: Base) -> Network:
        """The network as it predicts from base rows; asked only where `predict_base` is not 0.

        It keeps them in buffers named `base_features` and `base_labels`.
        """
        return network

    def statistics(self, num_classes: int) -> dict[str, Tensor]:
        """Start of the running statistics that the loss reads; none unless told.

        After each step the loop sets a statistic to `m * statistic + (1 - m) * v`, m
        `statistics_decay` and v the mean of the values that the losses of all micro-batches gave,
        so that it is the same on every rank, and for every number of ranks up to rounding.
        """
        return {}

    @property
    def statistics_decay(self) -> float:
        """How much of a running statistic a step keeps."""
        return 0.999

    @abstractmethod
    def build(self, backbone: nn.Module, feature_dim: int, num_classes: int) -> Network:
        """The network to train. Called under a seeded RNG."""

    def refresh(self, graph: GraphView, state: NodeState) -> PseudoLabels | None:
        """Pseudo-labels of the own rows; runs SPMD on the store's shards. Pure."""
        return None

    @abstractmethod
    def loss(self, net: NetworkCall, batch: Batch) -> Loss:
        """Loss of one micro-batch."""


def method_names() -> list[str]:
    """Names of the methods on disk, sorted."""
    from . import methods

    return sorted(m.name for m in pkgutil.iter_modules(methods.__path__) if m.name[0] != "_")


def find_method(name: str) -> type[Method]:
    """The method class that `methods/<name>.py` defines.

    Raises:
        ValueError: There is no such method; the message lists those there are.
    """
    if name not in method_names():
        raise ValueError(f"method.name = {name!r}: no such method; known are {method_names()}")
    module = importlib.import_module(f"{__package__}.methods.{name}")
    found = [
        v
        for v in vars(module).values()
        if isinstance(v, type) and issubclass(v, Method) and v.__module__ == module.__name__
    ]
    assert len(found) == 1, f"methods/{name}.py must define exactly one Method, has {found}"
    return found[0]
