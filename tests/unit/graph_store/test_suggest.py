"""Criteria behind one call."""

from __future__ import annotations

import pytest
import torch
from labelmesh.graph_store.affinity import LocalAffinity
from labelmesh.graph_store.knn_graph import knn_graph
from labelmesh.graph_store.local_view import LocalGraphView
from labelmesh.graph_store.solvers.acquisition import neighbors_of, uncertainty
from labelmesh.graph_store.solvers.acquisition_batch import select
from labelmesh.graph_store.suggest import CRITERIA, Wanted, suggest_nodes
from torch import Tensor

SIZES = (40, 25, 10)


@pytest.fixture(scope="module")
def view() -> LocalGraphView:
    """Three clusters far apart, of different sizes."""
    generator = torch.Generator().manual_seed(0)
    centre = torch.repeat_interleave(torch.tensor([0.0, 50.0, 100.0]), torch.tensor(SIZES))
    return knn_graph(centre[:, None] + torch.randn(75, 2, generator=generator), 5).as_view()


@pytest.fixture(scope="module")
def probs() -> Tensor:
    return torch.softmax(2 * torch.randn(75, 3, generator=torch.Generator().manual_seed(1)), 1)


EVERYWHERE = torch.ones(75, dtype=torch.bool)


def order_of(place: Tensor) -> list[int]:
    return torch.argsort(place)[(place < 0).sum() :].tolist()


def test_uncertainty_is_the_score_and_its_order(view: LocalGraphView, probs: Tensor) -> None:
    for measure in ("entropy", "l2", "margin"):
        wanted = Wanted("uncertainty", measure)
        found = suggest_nodes(view, probs, among=EVERYWHERE, count=9, wanted=wanted)
        expected = uncertainty(probs.double(), measure)  # type: ignore[arg-type]
        torch.testing.assert_close(found.score, expected)
        best = torch.argsort(expected, descending=True, stable=True)[:9]
        assert order_of(found.place) == best.tolist()


def test_local_max_is_a_choice_that_is_apart(view: LocalGraphView, probs: Tensor) -> None:
    found = suggest_nodes(view, probs, among=EVERYWHERE, count=6, wanted=Wanted("local_max"))
    doubt = uncertainty(probs.double(), "margin")
    assert torch.equal(found.place, select(view, doubt, 6, among=EVERYWHERE))
    chosen = found.place >= 0
    assert not bool((neighbors_of(view, chosen) & chosen).any())


@pytest.mark.parametrize("criterion", ["sigma_opt", "model_change", "vopt"])
def test_clusters_without_a_label_are_asked_for_first(view: LocalGraphView, criterion: str) -> None:
    """Nothing is known: one question for each cluster, the largest first where sums count."""
    nothing = torch.zeros(75, 1)
    found = suggest_nodes(view, nothing, among=EVERYWHERE, count=3, wanted=Wanted(criterion))
    cluster = torch.repeat_interleave(torch.arange(3), torch.tensor(SIZES))
    asked = cluster[order_of(found.place)].tolist()
    assert sorted(asked) == [0, 1, 2]
    if criterion != "vopt":
        assert asked == [0, 1, 2]


def test_a_certain_node_changes_nothing(view: LocalGraphView) -> None:
    probs = torch.zeros(75, 2)
    probs[:, 0] = 1
    probs[60:65] = 0.5
    found = suggest_nodes(view, probs, among=EVERYWHERE, count=5, wanted=Wanted("model_change"))
    assert sorted(order_of(found.place)) == [60, 61, 62, 63, 64]


def test_what_nobody_wants_to_know_counts_for_nothing(view: LocalGraphView) -> None:
    """Absent nodes and those of other interest are neither chosen nor reasons to choose."""
    unknown = torch.arange(75) >= 40
    among = torch.arange(75) % 2 == 1
    found = suggest_nodes(
        view, torch.zeros(75, 1), among=among, unknown=unknown, count=1, wanted=Wanted("sigma_opt")
    )
    node = order_of(found.place)[0]
    assert 40 < node < 65
    assert node % 2 == 1


@pytest.mark.parametrize("criterion", CRITERIA)
def test_balanced_classes_take_turns(view: LocalGraphView, probs: Tensor, criterion: str) -> None:
    wanted = Wanted(criterion, balance=True)
    found = suggest_nodes(view, probs, among=EVERYWHERE, count=12, wanted=wanted)
    classes = probs.argmax(1)[order_of(found.place)]
    assert all(sorted(turn) == [0, 1, 2] for turn in classes.reshape(4, 3).tolist())


def test_weights_may_be_given(view: LocalGraphView) -> None:
    """Without any weight nothing tells about anything else; each node is taken once."""
    w = view.affinity("self_tuning")
    w.csr.vals[:] = 0
    empty = LocalAffinity(w.csr)
    found = suggest_nodes(
        view, torch.zeros(75, 1), among=EVERYWHERE, count=75, wanted=Wanted("vopt"), w=empty
    )
    assert sorted(order_of(found.place)) == list(range(75))


def test_bad_wishes(view: LocalGraphView, probs: Tensor) -> None:
    with pytest.raises(ValueError, match="criterion = 'luck': known are uncertainty, local_max"):
        Wanted("luck")
    with pytest.raises(ValueError, match="measure = 'luck': known are entropy, l2, margin"):
        Wanted(measure="luck")
    for criterion in CRITERIA:
        with pytest.raises(ValueError, match="count = 76, but only 75 nodes are unlabeled"):
            suggest_nodes(view, probs, among=EVERYWHERE, count=76, wanted=Wanted(criterion))
