"""DAG's round and loss against numbers worked by hand."""

import math
from typing import Any

import pytest
import torch
from labelmesh.graph_store.local_view import LocalGraphView
from labelmesh.graph_store.view import Hop, Neighborhood, NodeState, PseudoLabels
from labelmesh.trainers.layers.neighbor_attention import NeighborClassifier
from labelmesh.trainers.losses import entropy_and_balance, mixup_pairs
from labelmesh.trainers.method import Batch
from labelmesh.trainers.methods.dag import DAG, labels_where_paths_join
from labelmesh.trainers.row_views import views_of
from torch import Tensor, nn


def _round(**hyperparameters: Any) -> PseudoLabels:
    """Two chains of nodes: 0 -> 1 -> 2 -> 3 (1 and nothing else labeled) and 4 -> 5 (unlabeled).

    Densities rise along each chain. Node 0 lies below the labeled node, 2 and 3 above it.
    """
    ids = torch.tensor([[1], [2], [3], [2], [5], [4]])
    distance = torch.full((6, 1), 0.5)
    view = LocalGraphView(ids, 1 - distance**2 / 2, distance)
    labels = torch.tensor([-1, 0, -1, -1, -1, -1])
    probs = torch.tensor(
        [[0.75, 0.25], [1.0, 0.0], [0.5, 0.5], [0.25, 0.75], [0.2, 0.8], [0.0, 0.0]]
    )
    density = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.1, 0.2])
    state = NodeState(torch.zeros(6, 1), probs, labels, density, torch.ones(6, dtype=torch.bool))
    return DAG(**hyperparameters).refresh(view, state)


def test_paths_label_nodes_above_and_below_a_labeled_node() -> None:
    made = _round(sigma=1.0, bank_weight=0.5)
    assert made.extra["source"].tolist() == [2, 0, 1, 1, 3, 3]
    assert made.extra["parent"].tolist() == [1, 2, 3, -1, 5, -1]
    assert made.extra["path_length"].tolist() == [4, 3, 2, 1, 2, 1]
    expected = torch.tensor([[1.0, 0], [1, 0], [1, 0], [1, 0], [0.2, 0.8], [0, 0]])
    torch.testing.assert_close(made.probs, expected)
    assert made.weight.tolist() == [1, 1, 1, 1, 0.5, 0]


def test_without_lplu_nodes_below_keep_the_bank() -> None:
    made = _round(sigma=1.0, paths="l")
    assert made.extra["source"].tolist() == [3, 0, 1, 1, 3, 3]
    assert made.probs[0].tolist() == [0.75, 0.25]


def test_without_paths_every_unlabeled_node_keeps_the_bank() -> None:
    made = _round(sigma=1.0, paths="none")
    assert made.extra["source"].tolist() == [3, 0, 3, 3, 3, 3]
    assert made.probs[3].tolist() == [0.25, 0.75]


def test_steps_longer_than_sigma_end_the_path() -> None:
    made = _round(sigma=0.4)
    assert made.extra["parent"].tolist() == [-1] * 6
    assert made.extra["source"].tolist() == [3, 0, 3, 3, 3, 3]


def test_agreement_weighs_path_labels_by_the_bank() -> None:
    made = _round(sigma=1.0, pseudo_weight="agreement")
    assert made.weight.tolist() == [0.75, 1, 0.5, 0.25, 1, 0]


def test_temperature_sharpens_the_bank() -> None:
    made = _round(sigma=1.0, bank_temperature=0.5)
    torch.testing.assert_close(made.probs[4], torch.tensor([0.04, 0.64]) / 0.68)
    assert made.probs[5].tolist() == [0, 0]


INPUTS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])


def _view(name: str, rows: Tensor | None = None) -> Tensor:
    shift = {"weak": 0.0, "strong": 0.5}[name]
    return (INPUTS if rows is None else INPUTS[rows]) + shift


def _batch(
    pseudo: PseudoLabels | None, neighborhood: Neighborhood | None = None, order: str = "lu"
) -> Batch:
    labels = torch.tensor([1, -1, -1] if order == "lu" else [-1, 1, -1])
    generator = torch.Generator().manual_seed(0)
    return Batch("mixed", torch.arange(3), labels, pseudo, neighborhood, _view, generator)


def _net(hops: int = 0) -> NeighborClassifier:
    net = NeighborClassifier(nn.Identity(), 2, 2, hops=hops)
    with torch.no_grad():
        net.classifier.weight.copy_(torch.eye(2))
        net.classifier.bias.zero_()
    return net


PSEUDO = PseudoLabels(
    torch.tensor([[1.0, 0.0], [0.25, 0.75], [1.0, 0.0]]), torch.tensor([0.0, 1.0, 0.5])
)


def test_loss_by_hand() -> None:
    loss = DAG(hops=0, mixup=0.0, regularizer=0.0).loss(_net(), _batch(PSEUDO))
    low, high = -math.log(1 / (1 + math.e)), -math.log(math.e / (1 + math.e))
    expected = (low + 0.25 * low + 0.75 * high + 0.5 * math.log(2)) / 3
    assert loss.total.item() == pytest.approx(expected, rel=1e-6)


def test_before_round_zero_only_labeled_rows_count() -> None:
    loss = DAG(hops=0, mixup=0.0, regularizer=0.0).loss(_net(), _batch(None))
    assert loss.total.item() == pytest.approx(math.log(1 + math.e), rel=1e-6)


def test_regulariser_looks_at_the_batch() -> None:
    plain = DAG(hops=0, mixup=0.0, regularizer=0.0).loss(_net(), _batch(PSEUDO))
    loss = DAG(hops=0, mixup=0.0, regularizer=2.0).loss(_net(), _batch(PSEUDO))
    expected = plain.total + 2 * sum(entropy_and_balance(INPUTS))
    torch.testing.assert_close(loss.total, expected)


@pytest.mark.parametrize("order", ["lu", "ul"])
def test_strong_views_go_to_unlabeled_rows_alone(order: str) -> None:
    batch = _batch(PSEUDO, order=order)
    out = views_of(batch, torch.ones(3, dtype=torch.bool), unlabeled="strong")
    torch.testing.assert_close(out, INPUTS + 0.5 * (batch.labels < 0)[:, None])


def test_mixup_mixes_both_parents_losses() -> None:
    method = DAG(hops=0, mixup=1.0, regularizer=0.0)
    loss = method.loss(_net(), _batch(PSEUDO))
    partner, share = mixup_pairs(3, 1.0, torch.Generator().manual_seed(0))
    mixed = share[:, None] * INPUTS + (1 - share[:, None]) * INPUTS[partner]
    targets = torch.tensor([[0.0, 1.0], [0.25, 0.75], [1.0, 0.0]])
    weight = torch.tensor([1.0, 1.0, 0.5])
    cost = -mixed.log_softmax(1)
    own = (cost * targets).sum(1) * weight
    other = (cost * targets[partner]).sum(1) * weight[partner]
    torch.testing.assert_close(loss.total, (share * own + (1 - share) * other).mean())


def test_mixed_rows_see_both_parents_neighbours() -> None:
    """Each root has one neighbour of its own; the mixed root averages two."""
    seen: list[Neighborhood] = []
    net = _net(hops=1)

    def call(inputs: Tensor, neighborhood: Neighborhood) -> Any:
        seen.append(neighborhood)
        return net(inputs, neighborhood)

    hop = Hop(torch.tensor([[0], [1], [2]]), torch.arange(3), torch.eye(3)[:, :2], torch.zeros(3))
    DAG(mixup=1.0).loss(call, _batch(PSEUDO, Neighborhood((hop,))))
    partner, _ = mixup_pairs(3, 1.0, torch.Generator().manual_seed(0))
    expected = torch.stack([torch.arange(3), partner], dim=1)
    assert torch.equal(seen[0].hops[0].index, expected)


def test_neighbours_are_asked_for_as_deep_as_they_are_used() -> None:
    assert DAG(hops=2).phases[0].hops == DAG(hops=2).predict_hops == 2
    assert DAG(hops=0).predict_hops == 0


def test_nodes_whose_path_joins_a_labeled_one_take_its_label() -> None:
    """0 (labeled) -> 1 -> 2, and 3 -> 1, 4 -> 3: LP-L labels 1 and 2, 3 and 4 join at 1."""
    ids = torch.tensor([[1], [2], [1], [1], [3]])
    distance = torch.full((5, 1), 0.5)
    view = LocalGraphView(ids, 1 - distance**2 / 2, distance)
    density = torch.tensor([0.1, 0.2, 0.3, 0.1, 0.0])
    labels = torch.tensor([1, -1, -1, -1, -1])
    probs = torch.full((5, 2), 0.5)
    state = NodeState(torch.zeros(5, 1), probs, labels, density, torch.ones(5, dtype=torch.bool))
    assert DAG(paths="lu").refresh(view, state).extra["source"].tolist() == [0, 1, 1, 3, 3]
    made = DAG(paths="join").refresh(view, state)
    assert made.extra["source"].tolist() == [0, 1, 1, 4, 4]
    assert made.probs[:, 1].tolist() == [1] * 5


def test_joining_equals_a_walk_on_random_forests() -> None:
    for seed in range(30):
        rng = torch.Generator().manual_seed(seed)
        n = 40
        parent = torch.tensor(
            [-1] + [int(torch.randint(-1, i, (), generator=rng)) for i in range(1, n)]
        )
        labels = torch.where(torch.rand(n, generator=rng) < 0.2, torch.arange(n) % 3, -1)
        column = torch.zeros(n, 1)
        view = LocalGraphView(parent[:, None], column, column)
        expected = []
        for node in range(n):
            while labels[node] < 0 and parent[node] >= 0:
                node = int(parent[node])
            expected.append(int(labels[node]))
        assert labels_where_paths_join(view, parent, labels).tolist() == expected
