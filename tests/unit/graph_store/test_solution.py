"""What goes into `refresh` and what may come out."""

from __future__ import annotations

import pytest
import torch
from labelmesh.graph_store.solution import node_state, solution_columns, summarize
from labelmesh.graph_store.store import StoreSpec
from labelmesh.graph_store.view import NodeState, PseudoLabels

SPEC = StoreSpec(num_nodes=4, dim=1, num_classes=2, k=1)
PROBS = torch.tensor([[0.5, 0.5], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
WEIGHT = torch.tensor([0.5, 1.0, 0.25, 1.0])


def state() -> NodeState:
    """Node 1 is labeled, node 3 absent."""
    columns = {
        "features": torch.arange(4.0)[:, None].half(),
        "probs": torch.full((4, 2), 0.5),
        "density": torch.zeros(4),
        "present": torch.tensor([True, True, True, False]),
    }
    return node_state(columns, torch.tensor([-1, 0, -1, -1]), torch.device("cpu"))


def test_labeled_nodes_have_their_label_as_probabilities() -> None:
    assert state().probs.tolist() == [[0.5, 0.5], [1, 0], [0.5, 0.5], [0.5, 0.5]]
    assert state().features.dtype == torch.float32


def test_absent_nodes_get_no_weight() -> None:
    columns = solution_columns(SPEC, state(), PseudoLabels(PROBS, WEIGHT))
    assert columns["pseudo.weight"].tolist() == [0.5, 1, 0.25, 0]


def test_coverage_counts_present_unlabeled_nodes() -> None:
    weight = torch.tensor([0.5, 1.0, 0.0, 1.0])
    columns = solution_columns(SPEC, state(), PseudoLabels(PROBS, weight))
    assert summarize(state(), columns, lambda x: x) == {"coverage": 0.5, "mean_weight": 0.25}


def test_no_solution_covers_nothing() -> None:
    assert solution_columns(SPEC, state(), None) == {}
    assert summarize(state(), {}, lambda x: x) == {"coverage": 0.0, "mean_weight": 0.0}


def test_columns_own_their_memory() -> None:
    both = torch.zeros(4, 2, 2)
    found = PseudoLabels(PROBS, WEIGHT, {"part": both[:, 0]})
    column = solution_columns(SPEC, state(), found)["extra.part"]
    assert column.untyped_storage().nbytes() == column.nbytes


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (PseudoLabels(PROBS[:3], WEIGHT[:3]), r"probs of shape \(3, 2\); the shard has 4 rows"),
        (PseudoLabels(PROBS - 1, WEIGHT), "probs that are negative, NaN or infinite"),
        (PseudoLabels(PROBS, WEIGHT * 2), r"weights outside \[0, 1\]"),
        (PseudoLabels(PROBS, WEIGHT * torch.nan), r"weights outside \[0, 1\]"),
        (PseudoLabels(PROBS, WEIGHT, {"labels": WEIGHT}), "'labels'; this name is taken"),
        (PseudoLabels(PROBS, WEIGHT, {"path": WEIGHT[:2]}), r"extra\['path'\] of shape \(2,\)"),
    ],
)
def test_what_is_no_solution(found: PseudoLabels, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        solution_columns(SPEC, state(), found)
