"""GLL's loss against dense algebra, its phases, base scores and rounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from labelmesh.datasets.base_set import BaseSet
from labelmesh.graph_store.local_view import LocalGraphView
from labelmesh.graph_store.view import NodeState, PseudoLabels
from labelmesh.trainers.layers.graph_classifier import INSIDE_LOG
from labelmesh.trainers.losses import mixup_pairs
from labelmesh.trainers.method import BaseRows, Batch, Network
from labelmesh.trainers.methods.gll import GLL, Adversarial, base_score
from pydantic import ValidationError
from torch import Tensor, nn

from ..layers.test_graph_classifier import dense_probs

C, D, K = 3, 4, 3


def inputs_of(n: int, seed: int) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def views_of(views: dict[str, Tensor]) -> Callable[..., Tensor]:
    def view(name: str, rows: Tensor | None = None) -> Tensor:
        return views[name] if rows is None else views[name][rows]

    return view


def make_batch(
    labels: list[int],
    *,
    node_ids: list[int] | None = None,
    pseudo: PseudoLabels | None = None,
    with_base: bool = True,
) -> Batch:
    """Rows of noise; the strong view is other noise. Base rows are nodes 100, 101, ..."""
    n = len(labels)
    views = {"weak": inputs_of(n, 1), "strong": inputs_of(n, 2)}
    base = BaseRows(
        torch.arange(100, 106), torch.arange(6) % C, views_of({"weak": inputs_of(6, 3)})
    )
    return Batch(
        "graph",
        torch.arange(n) if node_ids is None else torch.tensor(node_ids),
        torch.tensor(labels),
        pseudo,
        None,
        views_of(views),
        torch.Generator().manual_seed(0),
        base if with_base else None,
    )


def network(method: GLL) -> Network:
    """Features are the inputs; the linear head gives log 3 for the first class."""
    net = method.build(nn.Identity(), D, C)
    with torch.no_grad():
        for name, value in net.named_parameters():
            value.zero_()
            if name.endswith("bias"):
                value[0] = math.log(3.0)
    return net


def test_supervised_loss_is_that_of_a_dense_solve() -> None:
    method = GLL(k=K, pseudo="none")
    labels = [0, 2, 1, 1, 0, 2, 2]
    loss = method.loss(network(method), make_batch(labels)).total
    u = dense_probs(inputs_of(7, 1), inputs_of(6, 3), torch.arange(6) % C, K, C)
    expected = -np.log(u[np.arange(7), labels] + INSIDE_LOG).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_pseudo_labels_count_by_their_weight_and_every_row_is_in_the_graph() -> None:
    method = GLL(k=K, pseudo="store", unlabeled_view="strong")
    probs = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.7, 0.2], [0.2, 0.2, 0.6], [0.9, 0.1, 0.0]])
    weight = torch.tensor([0.3, 0.5, 0.0, 0.25])
    batch = make_batch([-1, 2, -1, -1], pseudo=PseudoLabels(probs, weight))
    made = method.loss(network(method), batch)
    rows = torch.cat([inputs_of(4, 1)[1:2], inputs_of(4, 2)[[0, 2, 3]]])
    u = dense_probs(rows, inputs_of(6, 3), torch.arange(6) % C, K, C) + INSIDE_LOG
    expected = -(math.log(u[0, 2]) + 0.3 * math.log(u[1, 0]) + 0.25 * math.log(u[3, 0])) / 4
    assert made.total.item() == pytest.approx(expected, rel=1e-5)
    assert made.parts["used"].item() == pytest.approx(2 / 3)


def test_layer_labels_the_strong_views_by_the_weak_ones() -> None:
    base, labels = inputs_of(6, 3), torch.arange(6) % C
    weak = dense_probs(inputs_of(5, 1)[1:], base, labels, K, C)
    threshold = float(np.median(weak.max(1)))
    method = GLL(k=K, pseudo="layer", threshold=threshold, unlabeled_view="strong")
    made = method.loss(network(method), make_batch([1, -1, -1, -1, -1]))
    rows = torch.cat([inputs_of(5, 1)[:1], inputs_of(5, 2)[1:]])
    strong = np.log(dense_probs(rows, base, labels, K, C) + INSIDE_LOG)
    passed = weak.max(1) >= threshold
    assert passed.sum() == 2
    guessed = strong[1:][np.arange(4), weak.argmax(1)]
    expected = -(strong[0, 1] + (passed * guessed).sum()) / 5
    assert made.total.item() == pytest.approx(expected, rel=1e-5)
    assert made.parts["used"].item() == passed.mean()


def test_a_row_that_is_a_base_row_too_is_not_trained_on() -> None:
    method = GLL(k=K, pseudo="none")
    loss = method.loss(network(method), make_batch([0, 1], node_ids=[103, 7])).total
    u = dense_probs(inputs_of(2, 1), inputs_of(6, 3), torch.arange(6) % C, K, C)
    assert loss.item() == pytest.approx(-math.log(u[1, 1] + INSIDE_LOG) / 2, rel=1e-5)


def test_base_rows_alone_are_trained_on_after_all() -> None:
    method = GLL(k=K, pseudo="none")
    loss = method.loss(network(method), make_batch([0, 1], node_ids=[103, 101])).total
    u = dense_probs(inputs_of(2, 1), inputs_of(6, 3), torch.arange(6) % C, K, C)
    expected = -(math.log(u[0, 0] + INSIDE_LOG) + math.log(u[1, 1] + INSIDE_LOG)) / 2
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_without_base_rows_the_linear_head_is_trained() -> None:
    method = GLL(pseudo="none", switch_epoch=1)
    loss = method.loss(network(method), make_batch([0, 1], with_base=False)).total
    assert loss.item() == pytest.approx((math.log(5 / 3) + math.log(5)) / 2, rel=1e-6)


def test_mixed_rows_are_trained_towards_both_labels() -> None:
    method = GLL(k=K, pseudo="none", mixup=1.0)
    labels = torch.tensor([0, 2, 1, 1])
    loss = method.loss(network(method), make_batch(labels.tolist())).total
    partner, share = mixup_pairs(4, 1.0, torch.Generator().manual_seed(0))
    rows = inputs_of(4, 1)
    mixed = share[:, None] * rows + (1 - share[:, None]) * rows[partner]
    u = dense_probs(mixed, inputs_of(6, 3), torch.arange(6) % C, K, C) + INSIDE_LOG
    own, other = (-np.log(u[np.arange(4), y]) for y in (labels, labels[partner]))
    expected = (share.numpy() * own + (1 - share.numpy()) * other).mean()
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_gradients_reach_rows_and_base_rows() -> None:
    method = GLL(k=K, pseudo="none")
    # rows that a random map parts from all base rows have a uniform prediction, and no gradient
    features = nn.Linear(D, D, bias=False)
    nn.init.eye_(features.weight)
    net = method.build(features, D, C)
    weights = next(net.parameters())
    method.loss(net, make_batch([0, 1, 2])).total.backward()
    assert weights.grad is not None
    whole = weights.grad.clone()
    assert torch.isfinite(whole).all()
    assert whole.abs().sum() > 0
    assert net.classifier.weight.grad is None  # type: ignore[union-attr]


def test_the_switch_changes_phase_warm_up_and_prediction() -> None:
    method = GLL(switch_epoch=3, predict_per_class=7)
    assert [p.name for p in method.phases] == ["linear", "graph"]
    names = [[p.name for p in method.phases_at(epoch)] for epoch in range(5)]
    assert names == [["linear"]] * 3 + [["graph"]] * 2
    assert method.phases_at(2)[0].base is None
    assert method.phases_at(3)[0].base is not None
    assert method.warm_up.base is None
    assert [method.predict_base(done) for done in range(6)] == [0, 0, 0, 0, 7, 7]


def test_without_a_switch_the_layer_is_there_from_the_start() -> None:
    method = GLL(base_per_class=4, base_every="step")
    assert [p.name for p in method.phases] == ["graph"]
    assert method.warm_up.base == method.phases[0].base
    assert method.warm_up.base is not None
    assert (method.warm_up.base.per_class, method.warm_up.base.every) == (4, "step")
    assert method.predict_base(0) == method.predict_per_class


@pytest.mark.parametrize(
    ("options", "uses_graph", "nodes"),
    [
        ({"pseudo": "none"}, False, "labeled"),
        ({"pseudo": "layer"}, False, "mixed"),
        ({"pseudo": "store"}, True, "mixed"),
        ({"pseudo": "none", "base_choice": "entropy"}, True, "labeled"),
    ],
)
def test_rounds_are_made_where_something_reads_them(
    options: dict[str, Any], uses_graph: bool, nodes: str
) -> None:
    method = GLL(**options)
    assert method.uses_graph == uses_graph
    assert method.phases[0].nodes == nodes


def test_adversarial_rows_cost_more_and_base_rows_stay_clean() -> None:
    clean = GLL(k=K, pseudo="none")
    options = {"eps": 0.1, "steps": 3, "step_size": 0.05, "low": -math.inf, "high": math.inf}
    robust = GLL(k=K, pseudo="none", adversarial=options)
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().clone())
            return x

    net = robust.build(Spy(), D, C)
    batch = make_batch([0, 1, 2, 0])
    assert (
        robust.loss(net, batch).total > clean.loss(network(clean), make_batch([0, 1, 2, 0])).total
    )
    assert len(seen) == 4
    assert all(torch.equal(x[4:], inputs_of(6, 3)) for x in seen)
    assert 0 < float((seen[-1][:4] - inputs_of(4, 1)).abs().max()) <= 0.1 + 1e-6


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"set method\.base_choice"):
        GLL(local_max=True)
    with pytest.raises(ValidationError, match="method = 'nope': known are"):
        GLL(solver="nope")
    with pytest.raises(ValidationError, match="must be > 0 or 'self_tuning'"):
        GLL(bandwidth=0.0)
    with pytest.raises(ValidationError):
        Adversarial(eps=0.0)


def state_of(labels: Tensor, present: Tensor | None = None) -> NodeState:
    n = len(labels)
    present = torch.ones(n, dtype=torch.bool) if present is None else present
    return NodeState(torch.zeros(n, D), torch.full((n, C), 1 / C), labels, torch.ones(n), present)


def random_graph(n: int = 240, k: int = 5, seed: int = 0) -> tuple[LocalGraphView, Tensor]:
    """Noisy groups, all labeled; returns the view and the labels."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % C
    x = nn.functional.one_hot(labels, D).double() + 0.6 * torch.randn(n, D, generator=rng).double()
    x = nn.functional.normalize(x, dim=1)
    near = torch.cdist(x, x).fill_diagonal_(torch.inf).topk(k, largest=False)
    similarity = (1 - near.values.square() / 2).float()
    return LocalGraphView(near.indices, similarity, near.values.float()), labels


def test_base_score_is_the_uncertainty_of_the_neighbours_word() -> None:
    view = LocalGraphView(
        torch.tensor([[1], [0], [1], [0]]), torch.ones(4, 1), torch.full((4, 1), 0.5)
    )
    state = state_of(torch.tensor([0, 1, -1, 2]), torch.tensor([True, True, True, False]))
    around = torch.tensor([[0.5, 0.5, 0.0], [1.0, 0, 0], [1 / 3] * 3, [1 / 3] * 3]).double()
    score = base_score(view, state, around, "entropy", prefer_peaks=False)
    torch.testing.assert_close(score, torch.tensor([math.log(2), 0.0, -1.0, -1.0]))


@pytest.mark.parametrize("kind", ["entropy", "l2", "margin"])
def test_local_maxima_that_become_base_rows_are_no_neighbours(kind: str) -> None:
    view, labels = random_graph()
    method = GLL(base_choice=kind, local_max=True, pseudo="none")
    made = method.refresh(view, state_of(labels))
    score = made.extra["base_score"]
    base = BaseSet(labels, 2, seed=0, epoch=0, score=score).take(0, 0)
    assert torch.bincount(labels[base]).tolist() == [2] * C
    assert not torch.isin(view.neighbor_ids[base], base).any()
    # without LocalMax the least certain nodes lie side by side
    plain = GLL(base_choice=kind, pseudo="none").refresh(view, state_of(labels))
    crowd = BaseSet(labels, 2, seed=0, epoch=0, score=plain.extra["base_score"]).take(0, 0)
    assert plain.extra["base_score"][crowd].sum() >= plain.extra["base_score"][base].sum()


def test_a_round_labels_cliques_and_drops_what_is_below_the_threshold() -> None:
    ids = torch.tensor([[1, 2], [0, 2], [0, 1], [4, 5], [3, 5], [3, 4], [-1, -1]])
    exists = ids >= 0
    view = LocalGraphView(
        ids, torch.where(exists, 0.9, 0.0), torch.where(exists, math.sqrt(0.2), math.inf)
    )
    labels = torch.tensor([0, -1, -1, 2, -1, -1, -1])
    for solver in ("laplace", "poisson"):
        made = GLL(solver=solver, threshold=0.5).refresh(view, state_of(labels))
        assert made.probs[:6].argmax(1).tolist() == [0] * 3 + [2] * 3
        assert (made.weight[:6] >= 0.5).all()
        assert made.weight[6] == 0
