"""Which nodes of a graph to label next: the criteria behind one call, on any number of shards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, cast, get_args

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from .solvers.acquisition import UncertaintyKind, uncertainty
from .solvers.acquisition_batch import check_count, select
from .solvers.acquisition_variance import VarianceKind, covariance, select_by_variance
from .view import Affinity, GraphView

Criterion = Literal["uncertainty", "local_max", "vopt", "sigma_opt", "model_change"]
CRITERIA: tuple[str, ...] = get_args(Criterion)


@dataclass(frozen=True)
class Wanted:
    """What makes a node worth a label.

    Attributes:
        criterion: "uncertainty": nodes whose class is least certain, wherever they are.
            "local_max": those that are less certain than all around them, and never two neighbours
            while there are others. "vopt", "sigma_opt": nodes that tell most about the others,
            whatever their classes (`acquisition_variance`). "model_change": the same as
            "sigma_opt", times uncertainty: Miller and Bertozzi, "Model-Change Active Learning in
            Graph-Based Semi-Supervised Learning", 2021.
        measure: Of uncertainty: "entropy", "l2" or "margin".
        balance: Predicted classes take turns.
        rank: Directions in which variance is followed.
        seed: Of the probes for these.

    Raises:
        ValueError: No such criterion or measure.
    """

    criterion: str = "model_change"
    measure: str = "margin"
    balance: bool = False
    rank: int = 50
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, known in (
            ("criterion", self.criterion, CRITERIA),
            ("measure", self.measure, get_args(UncertaintyKind)),
        ):
            if value not in known:
                raise ValueError(f"{name} = {value!r}: known are {', '.join(known)}")


@dataclass(frozen=True)
class Choice:
    """Own rows.

    Attributes:
        place: Place in the choice, 0 = first; -1: not chosen.
        score: Uncertainty, or what the label would tell, at the moment of the choice; larger is
            better, and numbers of different criteria cannot be compared.
    """

    place: Int64[Tensor, " n"]
    score: Float64[Tensor, " n"]


def suggest_nodes(
    view: GraphView,
    probs: Float[Tensor, "n C"],
    *,
    among: Bool[Tensor, " n"],
    count: int,
    wanted: Wanted,
    unknown: Bool[Tensor, " n"] | None = None,
    w: Affinity | None = None,
) -> Choice:
    """Choose the next `count` nodes to label. Collective.

    Args:
        probs: Class distributions, as far as they are known; zero rows: nothing is.
        among: Nodes that may be chosen: unlabeled and present.
        unknown: Nodes whose class one wants to know; by default those that may be chosen.
        w: Weights of the graph, if they are there already; by default self-tuning ones.

    Raises:
        ValueError: More nodes are asked for than there are.
    """
    check_count(view, count, among)
    doubt = uncertainty(probs.to(torch.float64), cast(UncertaintyKind, wanted.measure))
    classes = probs.argmax(1) if wanted.balance else None
    if wanted.criterion in ("uncertainty", "local_max"):
        place = select(
            view,
            doubt,
            count,
            among=among,
            apart=wanted.criterion == "local_max",
            classes=classes,
            num_classes=probs.shape[1],
        )
        return Choice(place, doubt)
    weights = view.affinity("self_tuning") if w is None else w
    field = covariance(
        weights,
        view.node_ids,
        among if unknown is None else unknown,
        rank=wanted.rank,
        seed=wanted.seed,
    )
    kind = "vopt" if wanted.criterion == "vopt" else "sigma_opt"
    place, score = select_by_variance(
        view,
        field,
        count,
        kind=cast(VarianceKind, kind),
        among=among,
        weight=doubt if wanted.criterion == "model_change" else None,
        classes=classes,
        num_classes=probs.shape[1],
    )
    return Choice(place, score)
