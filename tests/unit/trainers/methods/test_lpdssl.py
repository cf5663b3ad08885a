"""LPDSSL's round on two cliques and its loss by hand."""

import math
from dataclasses import replace

import pytest
import torch
from labelmesh.graph_store.knn_graph import knn_graph
from labelmesh.graph_store.local_view import LocalGraphView
from labelmesh.graph_store.view import NodeState, PseudoLabels
from labelmesh.trainers.method import Batch
from labelmesh.trainers.methods.lpdssl import LPDSSL
from torch import Tensor, nn


def _cliques() -> tuple[LocalGraphView, NodeState]:
    """Nodes 0-2 and 3-7 are cliques, node 8 has no neighbours; 0 and 3 are labeled."""
    ids = torch.full((9, 4), -1)
    for members in (range(3), range(3, 8)):
        for i in members:
            others = [j for j in members if j != i]
            ids[i, : len(others)] = torch.tensor(others)
    exists = ids >= 0
    similarity = torch.where(exists, 0.8, 0.0)
    distance = torch.where(exists, math.sqrt(0.4), math.inf)
    labels = torch.tensor([0, -1, -1, 1, -1, -1, -1, -1, -1])
    present = torch.ones(9, dtype=torch.bool)
    state = NodeState(torch.zeros(9, 2), torch.full((9, 2), 0.5), labels, torch.ones(9), present)
    return LocalGraphView(ids, similarity, distance), state


def test_labels_stay_in_their_clique_with_full_certainty() -> None:
    made = LPDSSL().refresh(*_cliques())
    assert made.probs[:3].argmax(1).tolist() == [0] * 3
    assert made.probs[3:8].argmax(1).tolist() == [1] * 5
    torch.testing.assert_close(made.weight[:8], torch.ones(8))


def test_unreached_nodes_have_no_weight() -> None:
    made = LPDSSL().refresh(*_cliques())
    assert made.weight[8] == 0
    assert made.probs[8].tolist() == [0.5, 0.5]


def test_rare_classes_weigh_more() -> None:
    made = LPDSSL().refresh(*_cliques())
    torch.testing.assert_close(made.extra["class_weight"][:3], torch.ones(3))
    torch.testing.assert_close(made.extra["class_weight"][3:8], torch.full((5,), 3 / 5))


def test_the_next_round_starts_at_the_scores_of_the_last() -> None:
    x = torch.randn(80, 6, generator=torch.Generator().manual_seed(0))
    found = knn_graph(x, k=6, metric="cosine")
    graph = LocalGraphView(found.ids, found.distances, (2 - 2 * found.distances).sqrt())
    labels, present = torch.full((80,), -1), torch.ones(80, dtype=torch.bool)
    labels[:6] = torch.arange(6) % 2
    state = NodeState(x, torch.full((80, 2), 0.5), labels, torch.ones(80), present)
    solved = LPDSSL(max_iter=1000, tol=1e-9).refresh(graph, state)
    assert solved.numbers["solve_residual"] <= 1e-9
    hurried = LPDSSL(max_iter=1)
    cold, warm = (hurried.refresh(graph, replace(state, last=last)) for last in (None, solved))
    assert cold.numbers["solve_iterations"] == warm.numbers["solve_iterations"] == 1
    assert warm.numbers["solve_residual"] < 0.5 * cold.numbers["solve_residual"]
    errors = [float((part.probs - solved.probs).abs().max()) for part in (cold, warm)]
    assert errors[1] < 0.25 * errors[0]


INPUTS = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0], [0.0, 0.0]])


def _loss(pseudo: PseudoLabels | None) -> float:
    def view(name: str, rows: Tensor | None = None) -> Tensor:
        return INPUTS if rows is None else INPUTS[rows]

    net = LPDSSL().build(nn.Identity(), 2, 2)
    with torch.no_grad():
        for name, value in net.named_parameters():
            value.copy_(torch.eye(2) if name.endswith("weight") else torch.zeros(2))
    labels, generator = torch.tensor([0, -1, -1]), torch.Generator()
    batch = Batch("mixed", torch.arange(3), labels, pseudo, None, view, generator)
    return LPDSSL().loss(net, batch).total.item()


def test_loss_by_hand() -> None:
    probs = torch.tensor([[0.5, 0.5], [0.4, 0.6], [0.5, 0.5]])
    extra = {"class_weight": torch.tensor([0.5, 1.0, 1.0])}
    pseudo = PseudoLabels(probs, torch.tensor([1.0, 0.25, 0.0]), extra)
    # hard pseudo-label 1 of the second row, which the network gives 1/4
    expected = (0.5 * math.log(2) + 0.25 * -math.log(0.25)) / 3
    assert _loss(pseudo) == pytest.approx(expected, rel=1e-6)


def test_before_round_zero_only_labeled_rows_count() -> None:
    assert _loss(None) == pytest.approx(math.log(2), rel=1e-6)
