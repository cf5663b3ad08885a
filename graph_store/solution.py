"""What goes into a method's `refresh` and what comes out of it, on one shard. Pure."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Int64
from torch import Tensor
from torch.nn.functional import one_hot

from .store import StoreSpec
from .table import EXTRA, Columns
from .view import NodeState, PseudoLabels

_RESERVED = frozenset(
    ["features", "probs", "labels", "density", "present", "neighbor_ids", "similarity", "distances"]
)


def node_state(
    columns: Columns,
    labels: Int64[Tensor, " n"],
    device: torch.device,
    last: Columns | None = None,
) -> NodeState:
    """The own rows as a method sees them: float32, labeled nodes with their one-hot label.

    `last` holds the columns of the round before.
    """
    probs = columns["probs"].clone()
    is_labeled = labels >= 0
    probs[is_labeled] = one_hot(labels[is_labeled], probs.shape[1]).to(probs.dtype)
    return NodeState(
        features=columns["features"].to(device, torch.float32),
        probs=probs.to(device),
        labels=labels.to(device),
        density=columns["density"].to(device),
        present=columns["present"].to(device),
        last=None if last is None else _pseudo_labels(last, device),
    )


def _pseudo_labels(columns: Columns, device: torch.device) -> PseudoLabels | None:
    """What a round's columns say; None where its method made no pseudo-labels."""
    if "pseudo.probs" not in columns:
        return None
    made = {n.removeprefix(EXTRA): c for n, c in columns.items() if n.startswith(EXTRA)}
    return PseudoLabels(
        columns["pseudo.probs"].to(device),
        columns["pseudo.weight"].to(device),
        {name: column.to(device) for name, column in made.items()},
    )


def solution_columns(
    spec: StoreSpec, state: NodeState, found: PseudoLabels | None
) -> dict[str, Tensor]:
    """Check what `refresh` returned and turn it into columns. Absent nodes get weight 0.

    Raises:
        ValueError: Wrong shape, values that are no probabilities or weights, or an extra column
            that is named like one of the store's.
    """
    if found is None:
        return {}
    num_rows = len(state.labels)
    _check_shape("probs", found.probs, (num_rows, spec.num_classes))
    _check_shape("weight", found.weight, (num_rows,))
    if not (torch.isfinite(found.probs).all() and (found.probs >= 0).all()):
        raise ValueError("refresh returned probs that are negative, NaN or infinite")
    if not ((found.weight >= 0) & (found.weight <= 1)).all():
        raise ValueError("refresh returned weights outside [0, 1]")
    columns = {
        "pseudo.probs": _column(found.probs.float()),
        "pseudo.weight": _column(found.weight.float() * state.present),
    }
    for name, values in found.extra.items():
        if name in _RESERVED:
            raise ValueError(f"refresh returned an extra column {name!r}; this name is taken")
        _check_shape(f"extra[{name!r}]", values, (num_rows, *values.shape[1:]))
        # Neither numpy nor a snapshot's readers know bfloat16.
        is_bf16 = values.dtype == torch.bfloat16
        columns[EXTRA + name] = _column(values.float() if is_bf16 else values)
    return columns


def summarize(
    state: NodeState, columns: Columns, all_sum: Callable[[Tensor], Tensor]
) -> dict[str, float]:
    """Global "coverage" and "mean_weight" over the present unlabeled nodes; 0 where none is."""
    counted = (state.present & ~state.labeled).cpu()
    weight = columns.get("pseudo.weight", torch.zeros(len(counted)))[counted].double()
    parts = [counted.sum().double(), (weight > 0).sum().double(), weight.sum()]
    num_nodes, num_covered, total = all_sum(torch.stack(parts).to(state.labels.device)).tolist()
    share = 1 / max(1.0, num_nodes)
    return {"coverage": num_covered * share, "mean_weight": total * share}


def _check_shape(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(values.shape) != shape:
        raise ValueError(
            f"refresh returned {name} of shape {tuple(values.shape)}; the shard has {shape[0]} "
            f"rows and needs {shape}"
        )


def _column(values: Tensor) -> Tensor:
    """A contiguous CPU tensor that owns exactly its memory."""
    column = values.detach().cpu().contiguous()
    is_part = column.untyped_storage().nbytes() != column.nbytes
    return column.clone() if is_part else column
