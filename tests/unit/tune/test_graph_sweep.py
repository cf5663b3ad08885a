"""Sweeps of graphs: folds, one search for all k, chains, resuming, points that fail."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from labelmesh.graph_store.knn_graph import knn_graph
from labelmesh.graph_store.labeling import Propagator
from labelmesh.graph_store.local_store import LocalStore
from labelmesh.graph_store.store import StoreSpec
from labelmesh.trainers.config import ConfigError
from labelmesh.trainers.run_dir import RunDir
from labelmesh.tune.graph_folds import Splits, deal_folds
from labelmesh.tune.graph_params import KEYS, relevant, solver
from labelmesh.tune.graph_points import (
    CHAIN_LENGTH,
    Problem,
    Snapshot,
    chains,
    solve_chain,
)
from labelmesh.tune.graph_source import search, snapshot_of_features, snapshot_of_run
from labelmesh.tune.graph_spec import (
    GraphSweep,
    load_graph_sweep,
    parse_graph_sweep,
    shipped_graph_sweeps,
)
from labelmesh.tune.graph_sweep import POINTS_FILE, run_graph_sweep
from labelmesh.tune.graph_workers import on_ray, on_threads
from labelmesh.tune.points import Point
from torch import Tensor

C, N = 4, 240


def make_rows(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, C, (N,), generator=generator)
    x = 2.4 * torch.nn.functional.one_hot(truth, 6) + torch.randn(N, 6, generator=generator)
    return x.to(torch.float32), truth


def some_labels(truth: Tensor, per_class: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.full_like(truth, -1)
    for c in range(C):
        rows = (truth == c).nonzero()[:, 0]
        rows = rows[torch.randperm(len(rows), generator=generator)[:per_class]]
        labels[rows] = c
    return labels


@pytest.fixture(scope="module")
def snapshot() -> Snapshot:
    x, truth = make_rows()
    return search(x, some_labels(truth, 8), C, k=12, metric="cosine")


def sweep_of(**raw: Any) -> GraphSweep:
    space = raw.pop("space", {"k": {"grid": [4, 8]}, "alpha": {"grid": [0.5, 0.9]}})
    raw = {"folds": {"repeats": 2}, "set": {"method": "local_global"}, **raw, "space": space}
    return parse_graph_sweep(raw, name="small", source="small")


SMALL_SPACE = {
    "method": {"choice": ["laplace", "local_global", "density_paths"]},
    "k": {"int": [3, 12]},
    "alpha": {"uniform": [0.5, 0.99]},
    "tau": {"loguniform": [1e-4, 0.1]},
    "sigma": {"uniform": [0.3, 1.2]},
}


# --- folds ---------------------------------------------------------------------------------


def test_every_label_is_hidden_once_per_deal_and_no_class_as_a_whole() -> None:
    labels = torch.full((60,), -1)
    labels[:7], labels[10:13], labels[20:22], labels[30] = 0, 1, 2, 3  # class 3 has one label
    splits = deal_folds(labels, 5, num_folds=5, repeats=3, seed=4)
    own = splits.given.labels
    assert splits.hidden.shape == (15, 13)
    times = splits.hidden.sum(0)
    assert times[own == 3].tolist() == [0]
    assert set(times[own != 3].tolist()) == {3}
    for row in splits.hidden:
        for c in range(3):
            assert not bool(row[own == c].all())
    sizes = splits.hidden.sum(1).tolist()
    assert max(sizes) - min(sizes) <= 1
    again = deal_folds(labels, 5, num_folds=5, repeats=3, seed=4)
    other = deal_folds(labels, 5, num_folds=5, repeats=3, seed=5)
    assert torch.equal(splits.hidden, again.hidden)
    assert not torch.equal(splits.hidden, other.hidden)


def test_of_many_labels_a_stratified_sample_is_hidden() -> None:
    labels = torch.arange(400) % 4
    splits = deal_folds(labels, 4, max_judged=40, repeats=2)
    assert len(splits.given.judged) == 40
    assert torch.bincount(splits.given.labels[splits.given.judged]).tolist() == [10] * 4
    hidden = splits.hidden.any(0).nonzero()[:, 0]
    assert torch.equal(hidden, splits.given.judged)


def test_labels_that_cannot_be_hidden_are_refused() -> None:
    labels = torch.tensor([0, 1, 2, -1])
    with pytest.raises(ValueError, match="at most one label"):
        deal_folds(labels, 3)


# --- one search ------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_first_columns_are_the_graph_of_fewer_neighbours(metric: Any) -> None:
    x, truth = make_rows()
    x[50:60] = x[40:50]  # copies: ties by id
    found = search(x, truth, C, k=15, metric=metric)
    for k in (1, 4, 9, 15):
        view, fresh = found.view(k), knn_graph(x, k, metric).as_view()
        for name in ("neighbor_ids", "similarity", "distances"):
            assert torch.equal(getattr(view, name), getattr(fresh, name))
    assert found.view(4).neighbor_ids.data_ptr() == found.neighbor_ids.data_ptr()
    with pytest.raises(ValueError, match=r"k = 16 is not in 1..15"):
        found.view(16)
    with pytest.raises(ValueError, match="lower k to at most 239"):
        search(x, truth, C, k=N, metric=metric)


def test_a_store_gives_the_graph_that_it_had(tmp_path: Path) -> None:
    x, truth = make_rows()
    labels = some_labels(truth, 3)
    store = LocalStore(StoreSpec(N + 2, 6, C, 5, "cosine", "float32"))
    store.put(torch.arange(N), x)  # two samples could not be read
    given = (labels >= 0).nonzero()[:, 0]
    store.put_labels(given, labels[given])
    store.update_knn()
    store.refresh(None, round=0)
    run = RunDir(str(tmp_path))
    store.snapshot(run.child("store"))
    found = snapshot_of_run(run.uri, k=9)
    ids, similarity = store.neighbors(torch.arange(N))
    assert torch.equal(found.view(5).neighbor_ids, ids)
    assert torch.equal(found.view(5).similarity.float(), similarity)
    assert torch.equal(found.labels, labels)
    with pytest.raises(ValueError, match="no snapshot of a store"):
        snapshot_of_run(str(tmp_path / "elsewhere"), k=3)


# --- scores ----------------------------------------------------------------------------------


def problem_of(snapshot: Snapshot, **options: Any) -> Problem:
    return Problem(snapshot, deal_folds(snapshot.labels, C, repeats=2), **options)


def test_scores_are_those_of_solving_every_fold_anew(snapshot: Snapshot) -> None:
    params = {"method": "laplace", "k": 6, "tau": 0.01}
    problem = problem_of(snapshot, tol=1e-8)
    (point,) = solve_chain(problem, [params])
    given, asked = problem.splits.given, solver(params, 1e-8)
    expected = []
    for hidden in problem.splits.hidden:
        labels = snapshot.labels.clone()
        labels[given.node_ids[hidden]] = -1
        found = Propagator(snapshot.view(6), asked.how).solve(labels, C).labels
        right = found[given.node_ids[hidden]] == given.labels[hidden]
        expected.append(float(right.double().mean()))
    assert point.scores == tuple(expected)


def test_hidden_labels_change_nothing_but_the_score(snapshot: Snapshot) -> None:
    """Other labels under the same cover: the same answers, which are right less often."""
    splits = deal_folds(snapshot.labels, C, repeats=1)
    hidden = splits.hidden[:1]
    labels = splits.given.labels.clone()
    labels[hidden[0]] = (labels[hidden[0]] + 1) % C
    given = splits.given
    changed = Splits(type(given)(given.node_ids, labels, given.judged, C), hidden, 5)
    for params in (
        {"method": "laplace", "k": 8},
        {"method": "poisson", "k": 8},
        {"method": "local_global", "k": 8},
        {"method": "density_paths", "k": 8, "paths": "join"},
    ):
        scores = []
        for one in (Splits(given, hidden, 5), changed):
            (point,) = solve_chain(Problem(snapshot, one), [params])
            scores.append(point.scores[0])
        assert scores[0] > 0.4
        assert scores[0] + scores[1] <= 1.0


def test_what_no_label_reaches_counts_what_it_is_told_to(snapshot: Snapshot) -> None:
    params = {"method": "density_paths", "k": 3, "sigma": 0.1, "paths": "l"}
    low, high = (
        solve_chain(problem_of(snapshot, unreached=share), [params])[0].mean for share in (0.0, 1.0)
    )
    assert low < 0.2
    assert high > 0.8


def test_balanced_accuracy_weighs_classes_alike() -> None:
    x, truth = make_rows()
    labels = some_labels(truth, 5)
    labels[(truth == 0).nonzero()[:40, 0]] = 0
    snapshot = search(x, labels, C, k=8, metric="cosine")
    params = [{"method": "nearest_labeled", "k": 8}]
    plain, balanced = (
        solve_chain(problem_of(snapshot, metric=metric), params)[0].mean
        for metric in ("accuracy", "balanced_accuracy")
    )
    assert balanced < plain


# --- parameters --------------------------------------------------------------------------------


def test_a_point_has_what_its_method_reads() -> None:
    full = {"method": "laplace", "k": 5, "affinity": "power", "gamma": 2.0, "alpha": 0.9}
    full |= {"tau": 0.1, "sigma": 1.0, "paths": "lu", "p": 3.0, "balance_classes": True}
    assert set(full) == set(KEYS)
    assert set(relevant(full)) == {"method", "k", "affinity", "gamma", "tau"}
    assert set(relevant({**full, "affinity": "self_tuning"})) == {"method", "k", "affinity", "tau"}
    assert set(relevant({**full, "method": "density_paths"})) == {"method", "k", "sigma", "paths"}
    assert relevant({}) == {"method": "poisson", "k": 20}


def test_a_grid_tries_no_point_twice(snapshot: Snapshot) -> None:
    space = {
        "method": {"choice": ["laplace", "local_global", "density_paths"]},
        "alpha": {"grid": [0.5, 0.9]},
        "tau": {"grid": [0.0, 0.1, 1.0]},
    }
    sweep = sweep_of(search={"searcher": "grid"}, set={"k": 5}, space=space)
    result = run_graph_sweep(sweep, snapshot)
    assert [p.params["method"] for p in result.points] == (
        ["laplace"] * 3 + ["local_global"] * 2 + ["density_paths"]
    )
    assert result.table()["alpha"].to_pylist() == [None] * 3 + [0.5, 0.9, None]


def test_chains_keep_methods_apart_and_neighbours_together() -> None:
    points = [{"method": m, "k": k} for k in range(20, 0, -1) for m in ("laplace", "poisson")]
    cut = chains(points)
    assert sorted(i for chain in cut for i in chain) == list(range(40))
    for chain in cut:
        assert len(chain) <= CHAIN_LENGTH
        assert len({points[i]["method"] for i in chain}) == 1
        ks = [points[i]["k"] for i in chain]
        assert ks == sorted(ks)
    assert chains([]) == []


# --- sweeps ------------------------------------------------------------------------------------


def recorded(seen: list[int]) -> Any:
    """A runner that counts what it is given, and hands chains back last first."""

    def runner(problem: Problem, todo: Sequence[Any]) -> Iterator[tuple[int, list[Point]]]:
        for number in reversed(range(len(todo))):
            seen.append(len(todo[number]))
            yield number, solve_chain(problem, todo[number])

    return runner


@pytest.mark.parametrize("searcher", ["random", "optuna"])
def test_scores_do_not_depend_on_who_solves_and_when(snapshot: Snapshot, searcher: str) -> None:
    how = {"searcher": searcher, "num_samples": 12, "batch": 6, "seed": 3}
    sweep = sweep_of(search=how, set={}, space=SMALL_SPACE)
    one = run_graph_sweep(sweep, snapshot, runner=partial(on_threads, num_workers=1))
    many = run_graph_sweep(sweep, snapshot, runner=partial(on_threads, num_workers=3))
    assert len(one.points) == 12
    assert len({json.dumps(dict(p.params), sort_keys=True) for p in one.points}) == 12
    assert [(p.params, p.scores) for p in many.points] == [(p.params, p.scores) for p in one.points]
    assert one.best.mean > 0.7


@pytest.mark.ray
def test_tasks_of_a_cluster_give_the_same_scores(snapshot: Snapshot, ray_local: Any) -> None:
    space = {"alpha": {"grid": [0.5, 0.9]}, "k": {"grid": [4, 6, 8, 10, 12]}}
    sweep = sweep_of(search={"searcher": "grid"}, space=space)
    here, there = run_graph_sweep(sweep, snapshot), run_graph_sweep(sweep, snapshot, runner=on_ray)
    assert [(p.params, p.scores) for p in there.points] == [
        (p.params, p.scores) for p in here.points
    ]


def test_a_warm_start_changes_no_score(snapshot: Snapshot) -> None:
    points = [{"method": "laplace", "k": k, "tau": t} for k in (5, 6) for t in (0.0, 1e-3, 1e-2)]
    points += [{"method": "poisson", "k": k} for k in (5, 6, 7)]
    problem = problem_of(snapshot)
    warm = solve_chain(problem, points)
    cold = [solve_chain(problem, [params])[0] for params in points]
    assert [p.scores for p in warm] == [p.scores for p in cold]


def test_a_sweep_that_was_cut_off_goes_on(snapshot: Snapshot, tmp_path: Path) -> None:
    how = {"searcher": "optuna", "num_samples": 12, "batch": 6, "seed": 1}
    sweep = sweep_of(search=how, set={}, space=SMALL_SPACE)
    whole = run_graph_sweep(sweep, snapshot)
    out, num_told = str(tmp_path / "cut"), 0

    def killed(points: Sequence[Point]) -> None:
        nonlocal num_told
        num_told += len(points)
        if num_told >= 8:
            raise KeyboardInterrupt

    one_worker = partial(on_threads, num_workers=1)
    with pytest.raises(KeyboardInterrupt):
        run_graph_sweep(sweep, snapshot, out=out, runner=one_worker, on_points=killed)
    with open(tmp_path / "cut" / POINTS_FILE, "a") as file:
        file.write('{"params": {"meth')  # a line that the kill cut off
    with pytest.raises(ValueError, match="--resume"):
        run_graph_sweep(sweep, snapshot, out=out)
    seen: list[int] = []
    resumed = run_graph_sweep(sweep, snapshot, out=out, resume=True, runner=recorded(seen))
    assert 0 < sum(seen) < 12
    assert [(p.params, p.scores) for p in resumed.points] == [
        (p.params, p.scores) for p in whole.points
    ]
    again: list[int] = []
    run_graph_sweep(sweep, snapshot, out=out, resume=True, runner=recorded(again))
    assert again == []
    other = sweep_of(search=how, set={}, space=SMALL_SPACE, folds={"repeats": 3})
    with pytest.raises(ValueError, match="another sweep"):
        run_graph_sweep(other, snapshot, out=out, resume=True)


def test_a_point_that_fails_does_not_end_the_sweep() -> None:
    x, truth = make_rows()
    snapshot = search(x, some_labels(truth, 6), C, k=6, metric="euclidean")
    space = {"affinity": {"choice": ["self_tuning", "power"]}, "k": {"grid": [4, 6]}}
    result = run_graph_sweep(sweep_of(search={"searcher": "grid"}, space=space), snapshot)
    assert [p.state for p in result.points] == ["finished", "finished", "failed", "failed"]
    assert "needs similarities" in str(result.points[2].error)
    assert result.best.params["affinity"] == "self_tuning"
    how = {"searcher": "optuna", "num_samples": 4}
    found = run_graph_sweep(sweep_of(search=how, space=space), snapshot)
    assert {p.state for p in found.points} == {"finished", "failed"}


# --- files -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", shipped_graph_sweeps())
def test_shipped_sweeps_are_valid(name: str, snapshot: Snapshot) -> None:
    sweep = load_graph_sweep(name)
    assert load_graph_sweep(name.removeprefix("graph-")) == sweep
    assert sweep.max_k >= 40
    assert (Path(shipped_graph_sweeps()[name])).read_text().startswith("# ")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"space": {}}, "space"),
        ({"space": {"kk": {"int": [1, 2]}}}, "did you mean 'k'"),
        ({"set": {"metod": "laplace"}}, "did you mean 'method'"),
        ({"set": {"method": "laplac"}}, "method = 'laplac': known are"),
        ({"set": {"k": 5}}, "in .set. and in .space."),
        ({"searchh": {}}, "did you mean 'search'"),
        ({"search": {"num_sample": 3}}, "did you mean 'num_samples'"),
        ({"search": {"num_samples": 0}}, "search.num_samples = 0"),
        ({"space": {"k": {"int": [0, 5]}}}, "k = 0 must be a whole number of at least 1"),
        ({"metric": "test/accuracy"}, "metric = 'test/accuracy'"),
        ({"set": {}, "space": {"method": {"uniform": [0.0, 1.0]}}}, "give a choice"),
    ],
)
def test_files_that_are_wrong_are_refused_with_a_sentence(raw: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sweep_of(**raw)


def test_overrides_go_by_dotted_key(tmp_path: Path) -> None:
    sweep = load_graph_sweep(
        "graph-laplace", {"search.searcher": "random", "set.affinity": "power"}
    )
    assert sweep.search.searcher == "random"
    assert sweep.fixed["affinity"] == "power"
    with pytest.raises(ConfigError, match="did you mean 'graph-laplace'"):
        load_graph_sweep("graph-laplase")
    (tmp_path / "own.toml").write_text("[space]\nk = { grid = [3] }\n")
    assert load_graph_sweep(tmp_path / "own.toml").name == "own"


def test_features_are_read_as_label_reads_them(tmp_path: Path) -> None:
    x, truth = make_rows()
    labels = some_labels(truth, 3)
    np.savez(tmp_path / "x.npz", features=x.numpy(), labels=np.where(labels < 0, -1, labels * 3))
    found = snapshot_of_features(str(tmp_path / "x.npz"), None, k=5, metric="euclidean")
    assert torch.equal(found.labels, labels)
    assert found.num_classes == C
    np.save(tmp_path / "x.npy", x.numpy())
    with pytest.raises(ValueError, match="--labels FILE"):
        snapshot_of_features(str(tmp_path / "x.npy"), None, k=5, metric="euclidean")
    with pytest.raises(ValueError, match="known are euclidean, cosine"):
        snapshot_of_features(str(tmp_path / "x.npy"), None, k=5, metric="manhattan")
