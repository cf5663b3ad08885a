"""Every solver behind one call: distributions, components, held-out labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from labelmesh import knn_graph
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.component_poisson import ComponentPoisson
from labelmesh.graph_store.labeling import METHODS, Propagation, Propagator, agreement_shares
from labelmesh.graph_store.labeling_round import Folds, LabelingRound, found_while_held_out
from labelmesh.graph_store.local_view import LocalGraphView
from labelmesh.graph_store.solvers import local_global, poisson
from labelmesh.graph_store.view import NodeState


def clusters(gap: float, num_per_class: int = 30) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows in three clusters, `gap` apart, and labels of two nodes of each."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.arange(3).repeat_interleave(num_per_class)
    x = gap * torch.eye(3)[truth] + torch.randn(len(truth), 3, generator=generator)
    labels = torch.full_like(truth, -1)
    given = torch.tensor([0, 1]) + num_per_class * torch.arange(3)[:, None]
    labels[given.flatten()] = truth[given.flatten()]
    return x, labels


def view_of(x: torch.Tensor, k: int = 6) -> LocalGraphView:
    return knn_graph(x, k).as_view()


@pytest.mark.parametrize("method", METHODS)
def test_rows_are_distributions_whose_largest_share_is_the_label(method: str) -> None:
    x, labels = clusters(3.0)
    solved = Propagator(view_of(x), Propagation(method)).solve(labels, 3)
    reached = solved.labels >= 0
    assert reached.all() or method == "density_paths"
    assert bool((solved.probs >= 0).all())
    torch.testing.assert_close(
        solved.probs[reached].sum(1), torch.ones(int(reached.sum())).double()
    )
    assert not solved.probs[~reached].any()
    assert torch.equal(solved.probs.argmax(1)[reached], solved.labels[reached])
    assert torch.equal(solved.confidence, solved.probs.amax(1))
    assert torch.equal(solved.labels[labels >= 0], labels[labels >= 0])


@pytest.mark.parametrize("method", METHODS)
def test_no_class_crosses_to_another_component(method: str) -> None:
    """Cluster 0 has labels of classes 0 and 1, cluster 1 of class 1 alone, cluster 2 none."""
    x, labels = clusters(1000.0)
    labels[:30:6] = torch.tensor([0, 1, 0, 1, 0])
    labels[60:] = -1
    solved = Propagator(view_of(x), Propagation(method)).solve(labels, 2)
    assert set(solved.labels[:30].tolist()) <= {0, 1, -1}
    assert set(solved.labels[30:60].tolist()) <= {1, -1}
    assert set(solved.labels[60:].tolist()) == {-1}
    if method not in ("density_paths", "nearest_labeled"):
        torch.testing.assert_close(solved.confidence[30:60], torch.ones(30).double())


def test_poisson_is_solved_on_each_component_as_if_it_were_alone() -> None:
    x, labels = clusters(1000.0)
    labels[:30:5] = torch.tensor([0, 1, 0, 1, 0, 2])
    w = knn_graph(x, 6).affinity("self_tuning")
    whole = ComponentPoisson(w)
    y = (labels[:, None] == torch.arange(3)).double()
    potential = whole.solve(y, whole.count(y), tol=1e-12)
    alone = LocalAffinity.from_scipy(w.to_scipy()[:30][:, :30])
    torch.testing.assert_close(
        potential[:30], poisson(alone, labels[:30], tol=1e-13), rtol=1e-7, atol=1e-9
    )
    # A component's only class has no sources.
    assert not potential[30:].any()


def test_poisson_is_the_dense_solution() -> None:
    x, labels = clusters(2.0)
    w = knn_graph(x, 6).affinity("self_tuning")
    dense = w.to_scipy().toarray()
    laplacian = np.diag(dense.sum(1)) - dense
    y = (labels[:, None] == torch.arange(3)).double()
    sources = np.where(labels[:, None] >= 0, y - y.sum(0) / y.sum(), 0.0)
    expected = np.linalg.lstsq(laplacian, sources, rcond=None)[0]
    expected -= (dense.sum(1) @ expected) / dense.sum()
    whole = ComponentPoisson(w)
    counts = whole.count(y)
    potential = whole.solve(y, counts)
    np.testing.assert_allclose(potential.numpy(), expected, atol=1e-8 * np.abs(expected).max())
    scaled = expected / np.sqrt((expected**2).mean())
    shares = np.exp(scaled) / np.exp(scaled).sum(1, keepdims=True)
    np.testing.assert_allclose(whole.shares(potential, counts).numpy(), shares, atol=1e-7)


def test_scores_are_divided_by_their_sum() -> None:
    x, labels = clusters(2.0)
    view = view_of(x)
    scores = local_global(
        view.affinity("self_tuning"), labels, alpha=0.9, balance_classes=True, tol=1e-12
    ).clamp(min=0)
    solved = Propagator(view, Propagation("local_global", alpha=0.9, tol=1e-12)).solve(labels, 3)
    expected = scores / scores.sum(1, keepdim=True)
    torch.testing.assert_close(solved.probs[labels < 0], expected[labels < 0])


def test_agreement_counts_the_node_and_its_neighbours() -> None:
    ids = torch.tensor([[1, 2], [0, 2], [0, -1]])
    view = LocalGraphView(ids, torch.zeros(3, 2), torch.ones(3, 2))
    shares = agreement_shares(view, torch.tensor([0, 0, 1]), 2)
    # Of three, two agree with node 0: share 2/3, the rest evenly over both classes.
    third = 1 / 3
    expected = [[5 / 6, 1 / 6], [5 / 6, 1 / 6], [0.25, 0.75]]
    torch.testing.assert_close(shares, torch.tensor(expected, dtype=torch.float64))
    nobody = agreement_shares(view, torch.tensor([0, 0, -1]), 2)
    assert nobody[2].tolist() == [0.0, 0.0]
    assert nobody[0, 0] == pytest.approx(2 * third + third / 2)


@pytest.mark.parametrize("method", ["poisson", "laplace", "nearest_labeled"])
def test_held_out_labels_are_found_as_if_they_had_not_been_given(method: str) -> None:
    x, labels = clusters(2.0)
    propagator = Propagator(view_of(x), Propagation(method))
    node_ids = torch.nonzero(labels >= 0)[:, 0]
    folds = Folds(node_ids, torch.tensor([0, 1, 1, 0, -1, 0]), 2)
    order: list[int] = []
    found = found_while_held_out(
        propagator, torch.arange(len(x)), labels, folds, 3, lambda number: order.append(number)
    )
    assert order == [0, 1]
    for number in range(2):
        hidden = labels.clone()
        held_out = node_ids[folds.fold == number]
        hidden[held_out] = -1
        alone = Propagator(view_of(x), Propagation(method)).solve(hidden, 3)
        assert torch.equal(found[held_out], alone.labels[held_out])
    assert set(found[folds.of(torch.arange(len(x))) < 0].tolist()) == {-1}


def test_labels_that_take_no_part_are_hidden() -> None:
    folds = Folds(torch.tensor([2, 5]), torch.tensor([0, -1]), 1)
    ids, labels = torch.tensor([2, 3, 5, 9]), torch.tensor([1, 0, 0, 1])
    assert folds.visible(ids, labels).tolist() == [1, -1, 0, -1]
    assert folds.of(ids).tolist() == [0, -1, -1, -1]


def test_a_round_of_a_store_says_the_same() -> None:
    x, labels = clusters(2.0)
    view, how = view_of(x), Propagation("laplace")
    node_ids = torch.nonzero(labels >= 0)[:, 0]
    folds = Folds(node_ids, torch.tensor([0, 1, 0, 1, 0, 1]), 2)
    nothing: Any = torch.zeros(len(x), 3)
    state = NodeState(x, nothing, labels, nothing[:, 0], labels > -5)
    got = LabelingRound(how, 3, folds)(view, state)
    expected = Propagator(view, how).solve(labels, 3)
    assert torch.equal(got.extra["found"], expected.labels)
    assert torch.equal(got.extra["confidence"], expected.confidence)
    assert torch.equal(got.probs, expected.probs.float())
    held_out = found_while_held_out(Propagator(view, how), view.node_ids, labels, folds, 3)
    assert torch.equal(got.extra["held_out"], held_out)
    assert set(LabelingRound(how, 3)(view, state).extra["held_out"].tolist()) == {-1}


def test_class_sizes_leave_out_what_no_label_reaches() -> None:
    x, labels = clusters(1000.0)
    labels[:30:5] = torch.tensor([0, 1, 0, 1, 0, 1])
    labels[30:] = -1
    how = Propagation("laplace", class_priors=(0.8, 0.2))
    solved = Propagator(view_of(x), how).solve(labels, 2)
    counts = torch.bincount(solved.labels[:30], minlength=2)
    assert counts.tolist() == [24, 6]
    assert set(solved.labels[30:].tolist()) == {-1}


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(ValueError, match="method = 'voting': known are poisson, poisson_mbo"):
        Propagation("voting")
