"""Hidden labels from one solve: against solving anew for every choice of hidden labels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from labelmesh.graph_store import held_out
from labelmesh.graph_store.held_out import LabeledNodes, respond
from labelmesh.graph_store.knn_graph import knn_graph
from labelmesh.graph_store.labeling import METHODS, Propagation, Propagator
from labelmesh.graph_store.local_view import LocalGraphView
from labelmesh.graph_store.solvers import density_paths
from labelmesh.trainers.methods.dag import labels_where_paths_join
from torch import Tensor

C = 3
SOLVED_ANEW = ("poisson_mbo", "p_laplace", "wnll", "poisson_reweighted", "properly_weighted")


def clusters(num_rows: int, seed: int, *, far: float = 0.0) -> tuple[Tensor, Tensor]:
    """Rows around three corners, an eighth of them farther away, and the truth."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, C, (num_rows,), generator=generator)
    x = 2.0 * torch.nn.functional.one_hot(truth, 5) + torch.randn(num_rows, 5, generator=generator)
    x[: num_rows // 8] += far
    return x.to(torch.float32), truth


def given_labels(truth: Tensor, seed: int, *, per_class: int = 6) -> LabeledNodes:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.cat(
        [
            (truth == c).nonzero()[:, 0][
                torch.randperm(int((truth == c).sum()), generator=generator)[:per_class]
            ]
            for c in range(C)
        ]
    )
    ids = ids.sort().values
    judged = torch.randperm(len(ids), generator=generator)[: len(ids) - 3].sort().values
    return LabeledNodes(ids, truth[ids], judged, C)


def choices(given: LabeledNodes, count: int, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(count):
        hidden = torch.zeros(len(given.labels), dtype=torch.bool)
        hidden[given.judged] = torch.rand(len(given.judged), generator=generator) < 0.3
        out.append(hidden)
    return out


def anew(view: LocalGraphView, how: Propagation, given: LabeledNodes, hidden: Tensor) -> Tensor:
    labels = torch.full((view.num_nodes,), -1)
    labels[given.node_ids] = torch.where(hidden, -1, given.labels)
    found = Propagator(view, how).solve(labels, C).labels[given.node_ids]
    return torch.where(hidden, found, -1)


def options() -> list[dict[str, Any]]:
    return [
        *({"method": name} for name in METHODS if name not in SOLVED_ANEW),
        {"method": "wnll"},
        {"method": "local_global", "alpha": 0.8, "affinity": "power", "gamma": 2.0},
        {"method": "local_global", "balance_classes": False},
        {"method": "random_walk", "alpha": 0.5},
        {"method": "laplace", "tau": 0.3},
        {"method": "laplace", "affinity": "power"},
        {"method": "poisson", "affinity": "power"},
        {"method": "density_paths", "sigma": 2.0},
    ]


@pytest.mark.parametrize("option", options(), ids=str)
def test_one_solve_answers_every_choice_of_hidden_labels(option: dict[str, Any]) -> None:
    metric = "cosine" if option.get("affinity") == "power" else "euclidean"
    x, truth = clusters(120, seed=1, far=0.0 if metric == "cosine" else 40.0)
    view = knn_graph(x, 6, metric).as_view()
    how = Propagation(**option, tol=1e-10)
    given = given_labels(truth, seed=2)
    w = view.affinity(how.affinity, gamma=how.gamma)
    response = respond(view, w, how, given).response
    for hidden in choices(given, 2, seed=3):
        assert torch.equal(response.classes(hidden), anew(view, how, given, hidden))


@pytest.mark.parametrize("method", ["laplace", "poisson", "local_global", "nearest_labeled"])
def test_parts_without_a_visible_label_stay_without(method: str) -> None:
    x, truth = clusters(160, seed=4, far=40.0)
    view = knn_graph(x, 4).as_view()
    alone = (torch.arange(160) < 20).nonzero()[:2, 0]
    ids = torch.cat([alone, torch.tensor([50, 80, 90, 120, 150])])
    given = LabeledNodes(ids, truth[ids], torch.arange(len(ids)), C)
    hidden = torch.tensor([True, True, True, False, False, False, False])
    how = Propagation(method, tol=1e-10)
    found = respond(view, view.affinity("self_tuning"), how, given).response.classes(hidden)
    assert found[:2].tolist() == [-1, -1]
    assert torch.equal(found, anew(view, how, given, hidden))


@pytest.mark.parametrize("method", ["laplace", "poisson", "local_global", "random_walk"])
def test_a_warm_start_changes_no_answer_and_saves_products(method: str) -> None:
    x, truth = clusters(250, seed=5)
    view = knn_graph(x, 8).as_view()
    w, given = view.affinity("self_tuning"), given_labels(truth, seed=6, per_class=12)
    first = {"alpha": 0.9} if method in ("local_global", "random_walk") else {"tau": 0.01}
    second = {name: value * 1.02 for name, value in first.items()}
    before = respond(view, w, Propagation(method, tol=1e-8, **first), given)
    how = Propagation(method, tol=1e-8, **second)
    cold, warm = respond(view, w, how, given), respond(view, w, how, given, start=before.start)
    assert cold.start is not None
    assert warm.start is not None
    torch.testing.assert_close(warm.start, cold.start, atol=1e-6, rtol=0.0)
    assert warm.iterations < cold.iterations
    for hidden in choices(given, 2, seed=7):
        assert torch.equal(warm.response.classes(hidden), cold.response.classes(hidden))


def test_where_single_labels_do_not_converge_every_choice_is_solved_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(held_out, "MAX_ITER", 3)
    x, truth = clusters(160, seed=13)
    view, given = knn_graph(x, 6).as_view(), given_labels(truth, seed=14)
    how = Propagation("poisson")
    solution = respond(view, view.affinity("self_tuning"), how, given)
    assert solution.start is None
    for hidden in choices(given, 2, seed=15):
        assert torch.equal(solution.response.classes(hidden), anew(view, how, given, hidden))


def test_labels_where_paths_join_are_those_of_the_method() -> None:
    x, truth = clusters(300, seed=8)
    view = knn_graph(x, 6, "cosine").as_view()
    given = given_labels(truth, seed=9, per_class=20)
    joined, first = (
        respond(view, None, Propagation("density_paths", sigma=0.7), given, reach=reach).response
        for reach in ("join", "lu")
    )
    num_joined = 0
    for hidden in choices(given, 3, seed=10):
        labels = torch.full((300,), -1)
        labels[given.node_ids] = torch.where(hidden, -1, given.labels)
        paths = density_paths(view, labels, sigma=0.7)
        expected = labels_where_paths_join(view, paths.parent, paths.labels)[given.node_ids]
        found = joined.classes(hidden)
        assert torch.equal(found, torch.where(hidden, expected, -1))
        num_joined += int((found != first.classes(hidden)).sum())
    assert num_joined > 0


def test_what_cannot_be_asked() -> None:
    x, truth = clusters(60, seed=11)
    view, given = knn_graph(x, 4).as_view(), given_labels(truth, seed=12, per_class=3)
    w = view.affinity("self_tuning")
    for how, message in (
        (Propagation("local_global", alpha=1.5), "alpha must lie strictly between 0 and 1"),
        (Propagation("laplace", tau=-1.0), "tau must be >= 0"),
        (Propagation("density_paths", sigma=-1.0), "sigma must be >= 0"),
        (Propagation(class_priors=(0.5, 0.3, 0.2)), "class_priors are not supported"),
    ):
        with pytest.raises(ValueError, match=message):
            respond(view, w, how, given)
