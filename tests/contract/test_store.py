"""The promise of `GraphStore`, kept by the local store and by 1, 2, 3 and 4 shards on Ray.

Every test starts from one snapshot with two published rounds; so the stores can be used again,
and every test is also one of restoring.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from labelmesh.graph_store.inbox import Inbox
from labelmesh.graph_store.local_store import LocalStore
from labelmesh.graph_store.solvers import density_paths, local_global, pseudo_labels
from labelmesh.graph_store.store import GraphStore, StoreSpec
from labelmesh.graph_store.view import GraphView, NodeState, PseudoLabels
from torch import Tensor

N, D, C, K = 103, 6, 3, 5
SPEC = StoreSpec(num_nodes=N, dim=D, num_classes=C, k=K)
ABSENT = torch.tensor([17, 60, 102])
PRESENT = torch.tensor([i for i in range(N) if i not in ABSENT])
ALL = torch.arange(N)


def features(round: int) -> Tensor:
    """Features of all nodes as put for a round: clusters, with duplicates and equal distances."""
    generator = torch.Generator().manual_seed(round)
    centres = torch.randn(C, D, generator=generator) * 2
    x = centres[ALL % C] + torch.randn(N, D, generator=generator).round()
    x[50] = x[3]
    x[90] = x[3] * 2  # the same direction
    return x


def labels() -> Tensor:
    given = torch.full((N,), -1)
    given[:6] = ALL[:6] % C
    given[17] = 2  # labeled but absent
    return given


def solve() -> Callable[[GraphView, NodeState], PseudoLabels]:
    """Propagation and density paths; a closure, so that Ray's workers get it by value."""

    def refresh(graph: GraphView, state: NodeState) -> PseudoLabels:
        w = graph.affinity("power", gamma=2.0)
        scores = local_global(w, state.labels, num_classes=state.probs.shape[1], tol=1e-12)
        reductions = {"all_sum": graph.all_sum, "all_max": graph.all_max}
        found = pseudo_labels(scores, state.labels, **reductions)
        paths = density_paths(graph, state.labels, sigma=0.8)
        extra = {"path_length": paths.path_length, "path_label": paths.labels, "seen": state.probs}
        return PseudoLabels(found.probs.float(), found.weight.float(), extra)

    return refresh


def local_store() -> LocalStore:
    """Two published rounds, put in pieces and out of order."""
    store = LocalStore(SPEC)
    store.put_labels(ALL, labels())
    for round in (0, 1):
        order = PRESENT[torch.randperm(len(PRESENT), generator=torch.Generator().manual_seed(1))]
        for ids in order.split(30):
            probs = torch.full((len(ids), C), 1 / C)
            store.put(ids, features(round)[ids], probs)
        store.update_knn()
        store.refresh(solve(), round=round)
    return store


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = str(tmp_path_factory.mktemp("store") / "saved")
    local_store().snapshot(uri)
    return uri


@pytest.fixture(scope="module")
def expected(saved: str) -> LocalStore:
    """What every store must answer."""
    return LocalStore.restore(saved)


@pytest.fixture(
    scope="module",
    params=[
        "local",
        *(
            pytest.param(count, marks=pytest.mark.ray, id=f"{count}-shards")
            for count in (1, 2, 3, 4)
        ),
    ],
)
def shared(request: pytest.FixtureRequest, saved: str) -> Iterator[Any]:
    if request.param == "local":
        yield LocalStore(SPEC)
        return
    request.getfixturevalue("ray_local")
    from labelmesh.graph_store.ray_store import RayStore, ShardOptions

    options = ShardOptions(threads_per_shard=1)
    with RayStore.create(SPEC, num_shards=request.param, options=options) as store:
        yield store


@pytest.fixture
def store(shared: Any, saved: str) -> GraphStore:
    """The two published rounds in a store of every kind."""
    if isinstance(shared, LocalStore):
        return LocalStore.restore(saved)
    shared.load(saved)
    return shared


def nearest(rows: Tensor, bank: Tensor, ids: Tensor, k: int, own: Tensor | None = None) -> Tensor:
    """Obvious neighbours: float64 distances of unit rows, by (distance, id)."""
    unit = [torch.nn.functional.normalize(x.double()).float().double() for x in (rows, bank)]
    d = (unit[0][:, None] - unit[1][None]).square().sum(2).sqrt()
    if own is not None:
        d[own[:, None] == ids[None]] = torch.inf
    order = [
        sorted(range(len(ids)), key=lambda j, i=i: (float(d[i, j]), int(ids[j])))
        for i in range(len(rows))
    ]
    return torch.stack([ids[torch.tensor(row[:k])] for row in order])


def test_it_is_a_graph_store(store: GraphStore) -> None:
    assert isinstance(store, GraphStore)
    assert store.spec == SPEC
    assert store.published() == (0, 1)


@pytest.mark.parametrize("round", [0, 1])
def test_neighbours_are_those_of_brute_force(store: GraphStore, round: int) -> None:
    x = features(round)[PRESENT]
    ids, similarity = store.neighbors(PRESENT, round=round)
    wanted = nearest(x, x, PRESENT, K, own=PRESENT)
    assert torch.equal(ids, wanted)
    unit = torch.nn.functional.normalize(features(round).double())
    cosines = (unit[PRESENT][:, None] * unit[ids]).sum(2)
    torch.testing.assert_close(similarity.double(), cosines, rtol=0, atol=1e-6)


def test_absent_nodes_have_no_edges_and_no_weight(store: GraphStore) -> None:
    ids, similarity = store.neighbors(ABSENT)
    assert ids.eq(-1).all()
    assert similarity.eq(0).all()
    assert store.pseudo_labels(ABSENT).weight.eq(0).all()
    assert store.read("present", ABSENT).eq(False).all()


def test_reads_keep_the_order_and_repetition_of_ids(
    store: GraphStore, expected: LocalStore
) -> None:
    ids = torch.tensor([102, 3, 50, 3, 0, 77, 3])
    for column in ("features", "probs", "labels", "density", "present", "path_label", "seen"):
        assert torch.equal(store.read(column, ids), expected.read(column, ALL)[ids]), column
    none = store.read("features", ALL[:0])
    assert none.shape == (0, D)


def test_rounds_show_what_was_put_for_them(store: GraphStore) -> None:
    for round in (0, 1):
        assert torch.equal(store.read("features", PRESENT, round=round), features(round)[PRESENT])
    assert torch.equal(store.read("features", PRESENT), features(1)[PRESENT])


def test_a_method_sees_labels_as_probabilities(store: GraphStore) -> None:
    seen = store.read("seen", ALL)
    given = labels()
    assert torch.equal(seen[given >= 0], torch.eye(C)[given[given >= 0]])
    assert seen[6:17].eq(1 / C).all()
    assert store.read("probs", torch.tensor([0])).eq(1 / C).all()


def test_a_new_round_is_the_same_on_any_number_of_shards(
    store: GraphStore, expected: LocalStore
) -> None:
    reference = copy.deepcopy(expected)
    reports, numbers = [], []
    for each in (store, reference):
        each.put(PRESENT[:70], features(2)[PRESENT[:70]])
        reports.append(each.update_knn())
        numbers.append(each.refresh(solve(), round=2))
    assert (reports[0].searched, reports[0].changed) == (reports[1].searched, reports[1].changed)
    assert numbers[0]["coverage"] == numbers[1]["coverage"]
    assert numbers[0]["mean_weight"] == pytest.approx(numbers[1]["mean_weight"], abs=1e-6)
    assert numbers[0].keys() == {"coverage", "mean_weight", "seconds_solve", "seconds_publish"}
    for column in (
        "neighbor_ids",
        "similarity",
        "distances",
        "density",
        "path_length",
        "path_label",
    ):
        assert torch.equal(store.read(column, ALL), reference.read(column, ALL)), column
    got, wanted = store.pseudo_labels(ALL), reference.pseudo_labels(ALL)
    torch.testing.assert_close(got.probs, wanted.probs, rtol=0, atol=1e-6)
    torch.testing.assert_close(got.weight, wanted.weight, rtol=0, atol=1e-6)
    assert got.extra.keys() == {"path_length", "path_label", "seen"}
    assert store.published() == (1, 2)


def test_published_rounds_do_not_see_later_puts(store: GraphStore) -> None:
    before = store.read("features", ALL)
    neighbors = store.neighbors(ALL)[0]
    store.put(PRESENT, features(5)[PRESENT])
    assert torch.equal(store.read("features", ALL), before)
    store.update_knn()
    assert torch.equal(store.neighbors(ALL)[0], neighbors)


def test_nothing_is_searched_when_nothing_was_put(store: GraphStore) -> None:
    report = store.update_knn()
    assert (report.searched, report.changed, report.exact, report.recall) == (0, 0, True, 1.0)
    store.put(PRESENT[:1], features(1)[PRESENT[:1]])
    report = store.update_knn()
    assert (report.searched, report.changed) == (len(PRESENT), 0)


def test_labels_are_permanent_and_can_be_taken_away(store: GraphStore) -> None:
    store.put_labels(torch.tensor([100, 0]), torch.tensor([2, -1]))
    got = store.read("labels", ALL)
    wanted = labels()
    wanted[[100, 0]] = torch.tensor([2, -1])
    assert torch.equal(got, wanted)
    assert torch.equal(store.read("labels", ALL, round=0), wanted)


def test_a_round_may_be_published_without_pseudo_labels(store: GraphStore) -> None:
    for fn in (None, lambda graph, state: None):
        numbers = store.refresh(fn, round=4)
        assert (numbers["coverage"], numbers["mean_weight"]) == (0, 0)
        found = store.pseudo_labels(ALL[:2], round=4)
        assert found.probs.tolist() == [[0] * C] * 2
        assert found.weight.tolist() == [0, 0]
        assert found.extra == {}


def test_refresh_sees_the_round_before_and_its_numbers_come_back(store: GraphStore) -> None:
    seen = ("path_length", "path_label", "seen")

    def refresh(graph: GraphView, state: NodeState) -> PseudoLabels:
        last = state.last
        assert last is not None
        assert set(last.extra) == set(seen)
        total = graph.all_sum(last.weight.double().sum().reshape(1))
        return PseudoLabels(last.probs, last.weight, numbers={"total": float(total[0])})

    before = store.pseudo_labels(ALL, round=1)
    numbers = store.refresh(refresh, round=2)
    assert numbers["total"] == pytest.approx(float(before.weight.double().sum()), abs=1e-9)
    after = store.pseudo_labels(ALL, round=2)
    assert torch.equal(after.probs, before.probs)
    assert torch.equal(after.weight, before.weight)


def test_rounds_may_be_computed_again_from_an_earlier_one(store: GraphStore) -> None:
    store.refresh(None, round=1)
    assert store.published() == (0, 1)
    store.refresh(None, round=0)
    assert store.published() == (0,)


def test_a_query_finds_the_nearest_nodes_of_all_shards(store: GraphStore) -> None:
    x = torch.randn(9, D, generator=torch.Generator().manual_seed(8))
    x[0] = features(1)[3] * 3  # three nodes lie in this direction
    ids, similarity = store.query(x, k=60)
    assert torch.equal(ids, nearest(x, features(1)[PRESENT], PRESENT, 60))
    assert ids[0, :3].tolist() == [3, 50, 90]
    torch.testing.assert_close(similarity[0, :3], torch.ones(3))
    old = store.query(x, k=1, round=0)[0]
    assert torch.equal(old, nearest(x, features(0)[PRESENT], PRESENT, 1))
    everything = store.query(x[:1], k=N)[0][0]
    assert everything[len(PRESENT) :].eq(-1).all()


def test_a_neighbourhood_is_made_of_neighbours(store: GraphStore) -> None:
    roots = torch.tensor([102, 4, 88, 4, 17])
    above = store.neighbors(roots)[0]
    for hop in store.neighborhood(roots, hops=3).hops:
        assert hop.node_ids.tolist() == sorted(set(above[above >= 0].tolist()))
        assert torch.equal(torch.where(hop.index < 0, -1, hop.node_ids[hop.index]), above)
        assert torch.equal(hop.features, features(1)[hop.node_ids])
        assert torch.equal(hop.density, store.read("density", hop.node_ids))
        above = store.neighbors(hop.node_ids)[0]


def test_a_neighbourhood_of_features_starts_with_their_nearest_nodes(store: GraphStore) -> None:
    x = torch.randn(4, D, generator=torch.Generator().manual_seed(9))
    first, second = store.query_neighborhood(x, k=7, hops=2, round=0).hops
    assert torch.equal(first.node_ids[first.index], store.query(x, k=7, round=0)[0])
    assert torch.equal(second.node_ids[second.index], store.neighbors(first.node_ids, round=0)[0])
    assert torch.equal(second.features, features(0)[second.node_ids])


def test_arrays_in_arrays_out(store: GraphStore, expected: LocalStore) -> None:
    some: Any = np.array([3, 102, 50])
    rows: Any = features(1)[some].numpy()
    rows.setflags(write=False)
    any_store: Any = store
    any_store.put(some, rows, probs=np.eye(C, dtype=np.float32))
    any_store.put_labels(some, np.array([0, 1, -1]))
    ids, similarity = any_store.neighbors(some)
    assert isinstance(ids, np.ndarray)
    assert isinstance(similarity, np.ndarray)
    np.testing.assert_array_equal(ids, expected.neighbors(ALL)[0][some].numpy())
    assert isinstance(any_store.query(rows, k=2)[0], np.ndarray)
    assert isinstance(any_store.read("density", some), np.ndarray)


def test_snapshots_go_from_any_store_to_any_other(
    store: GraphStore, expected: LocalStore, tmp_path: Any
) -> None:
    store.snapshot(str(tmp_path))
    local = LocalStore.restore(str(tmp_path))
    assert local.published() == (0, 1)
    for round in (0, 1):
        for column in ("features", "probs", "labels", "density", "neighbor_ids", "path_label"):
            got = local.read(column, ALL, round=round)
            assert torch.equal(got, expected.read(column, ALL, round=round)), column
        wanted = expected.pseudo_labels(ALL, round=round)
        assert torch.equal(local.pseudo_labels(ALL, round=round).probs, wanted.probs)
    assert local.update_knn().searched == 0


def test_what_is_staged_survives_a_snapshot(store: GraphStore, tmp_path: Any) -> None:
    store.put(PRESENT[:1], features(7)[PRESENT[:1]])  # on one shard only
    store.snapshot(str(tmp_path))
    local = LocalStore.restore(str(tmp_path))
    assert local.update_knn().searched == len(PRESENT)
    local.refresh(None, round=2)
    assert torch.equal(local.read("features", PRESENT[:1]), features(7)[PRESENT[:1]])
    assert torch.equal(local.read("features", PRESENT[1:]), features(1)[PRESENT[1:]])


def test_bad_rows_are_refused_before_anything_is_written(store: GraphStore) -> None:
    x = features(3)
    bad = x.clone()
    bad[88, 2] = torch.nan
    refused = [
        (ALL, bad, None, r"features has NaN or infinite values .* \[88\]"),
        (ALL, x, torch.full((N, C), torch.inf), "probs has NaN or infinite values"),
        (ALL, x[:, :2], None, "features must be floating point of shape"),
        (torch.cat([ALL[:2], ALL[1:2]]), x[:3], None, r"node_ids \[1\] come more than once"),
        (torch.tensor([1, N]), x[:2], None, rf"node_ids \[{N}\] are not in 0..{N - 1}"),
    ]
    for ids, rows, probs, message in refused:
        with pytest.raises(ValueError, match=message):
            store.put(ids, rows, probs)
    with pytest.raises(
        ValueError, match=r"labels \[3, 3\] of node_ids \[1, 102\] are not in -1..2"
    ):
        store.put_labels(torch.tensor([1, 0, 102]), torch.tensor([3, 0, 3]))
    assert store.update_knn().searched == 0
    assert torch.equal(store.read("labels", ALL), labels())


def test_bad_reads_are_refused(store: GraphStore) -> None:
    with pytest.raises(ValueError, match=r"node_ids \[-1\] are not in"):
        store.neighbors(torch.tensor([-1]))
    with pytest.raises(ValueError, match=r"round 9 cannot be read; published are \[0, 1\]"):
        store.neighbors(ALL[:1], round=9)
    with pytest.raises(ValueError, match="no column 'depth'; there are density, distances, feat"):
        store.read("depth", ALL[:1])
    with pytest.raises(ValueError, match="hops = 0 must be at least 1"):
        store.neighborhood(ALL[:1], hops=0)
    with pytest.raises(ValueError, match=r"k = 104 must lie in 1..num_nodes"):
        store.query(features(0), k=N + 1)
    with pytest.raises(ValueError, match=r"infinite values in rows \[1\]"):
        store.query(torch.tensor([[1.0] * D, [torch.inf] * D]), k=1)


def test_a_stale_graph_is_not_published(store: GraphStore) -> None:
    store.put(PRESENT[-1:], features(1)[PRESENT[-1:]])
    with pytest.raises(ValueError, match="the graph is older than the features; call update_knn"):
        store.refresh(None, round=2)
    assert store.published() == (0, 1)
    store.update_knn()
    store.refresh(None, round=2)


def test_a_method_that_fails_publishes_nothing_and_harms_nothing(store: GraphStore) -> None:
    def fail(graph: GraphView, state: NodeState) -> None:
        if int(graph.node_ids[-1]) == N - 1:  # the last shard only; the others wait for it
            raise ArithmeticError("no convergence")
        graph.all_sum(torch.zeros(1))

    with pytest.raises(ArithmeticError, match="no convergence"):
        store.refresh(fail, round=2)
    assert store.published() == (0, 1)
    assert store.refresh(solve(), round=2)["coverage"] > 0.9


def test_a_method_that_returns_nonsense_publishes_nothing(store: GraphStore) -> None:
    def nonsense(graph: GraphView, state: NodeState) -> PseudoLabels:
        return PseudoLabels(state.probs, state.density * 0 + 2)

    with pytest.raises(ValueError, match=r"refresh returned weights outside \[0, 1\]"):
        store.refresh(nonsense, round=2)
    assert store.published() == (0, 1)


# The graph follows the features


def oracle(store: GraphStore, x: Tensor, present: Tensor) -> None:
    """Assert that the staged or latest graph is that of a brute force over present nodes."""
    ids = store.neighbors(ALL)[0]
    at = ALL[present]
    few = nearest(x[at], x[at], at, min(K, len(at) - 1), own=at)
    wanted = torch.full((N, K), -1)
    wanted[at, : few.shape[1]] = few
    assert torch.equal(ids, wanted)


def test_nodes_come_move_and_go(store: GraphStore) -> None:
    """Puts, removals and updates in any order, each round against brute force."""
    g = torch.Generator().manual_seed(4)
    x, present = features(1), torch.ones(N, dtype=torch.bool)
    present[ABSENT] = False
    for round in range(2, 7):
        moving = (torch.rand(N, generator=g) < 0.1).nonzero()[:, 0]
        x[moving] += torch.randn(len(moving), D, generator=g)
        for ids in moving[torch.randperm(len(moving), generator=g)].split(4):
            store.put(ids, x[ids])
        present[moving] = True
        gone = (torch.rand(N, generator=g) < (0.05, 0.5)[round == 4]).nonzero()[:, 0]
        store.remove(gone)
        present[gone] = False
        report = store.update_knn()
        assert report.exact
        assert report.certified <= int(present.sum())
        store.refresh(None, round=round)
        assert torch.equal(store.read("present", ALL), present)
        oracle(store, x, present)
    back = ALL[~present]
    store.put(back, x[back])
    store.update_knn()
    store.refresh(None, round=7)
    oracle(store, x, torch.ones(N, dtype=torch.bool))


def test_a_node_that_is_removed_and_put_again_is_there(store: GraphStore) -> None:
    before = store.neighbors(ALL)[0]
    store.remove(PRESENT[:5])
    store.put(PRESENT[:5], features(1)[PRESENT[:5]])
    store.update_knn()
    store.refresh(None, round=2)
    assert torch.equal(store.neighbors(ALL)[0], before)
    store.put(PRESENT[5:6], features(2)[PRESENT[5:6]])
    store.remove(PRESENT[5:6])
    store.update_knn()
    store.refresh(None, round=3)
    assert not store.read("present", PRESENT[5:6]).any()
    assert torch.equal(store.read("labels", ALL), labels())


def test_unknown_nodes_cannot_be_removed(store: GraphStore) -> None:
    for ids in (torch.tensor([0, N]), torch.tensor([-1])):
        with pytest.raises(ValueError, match=r"node_ids .* are not in 0\.\."):
            store.remove(ids)
    with pytest.raises(ValueError, match="come more than once"):
        store.remove(torch.tensor([3, 3]))
    assert store.update_knn().searched == 0


def test_a_put_during_an_update_belongs_to_the_next_round_as_a_whole(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, later = features(1), features(6)

    def put_late() -> None:
        store.put(PRESENT, later[PRESENT])

    with monkeypatch.context() as patch:
        if isinstance(store, LocalStore):
            take = Inbox.take

            def take_and_put(inbox: Inbox, *args: Any) -> Tensor:
                written = take(inbox, *args)
                put_late()
                return written

            patch.setattr(Inbox, "take", take_and_put)
        else:
            complete = store._complete_puts

            def seal_and_put() -> tuple[str, ...]:
                sealed: tuple[str, ...] = complete()
                put_late()
                return sealed

            patch.setattr(store, "_complete_puts", seal_and_put)
        store.put(PRESENT[:2], x[PRESENT[:2]] + 1.0)
        store.update_knn()
    store.refresh(None, round=2)
    moved = x.clone()
    moved[PRESENT[:2]] += 1.0
    assert torch.equal(store.read("features", PRESENT), moved[PRESENT])
    store.update_knn()
    store.refresh(None, round=3)
    assert torch.equal(store.read("features", PRESENT), later[PRESENT])
    present = torch.ones(N, dtype=torch.bool)
    present[ABSENT] = False
    oracle(store, later, present)


def test_messages_may_be_delivered_twice(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if isinstance(store, LocalStore):
        pytest.skip("no messages in one process")
    request = store._request
    repeated: list[Any] = []

    def twice(shard: int, lane: str, method: str, *args: Any) -> Any:
        if method in ("put", "remove"):
            repeated.append((shard, lane, method, *args))
            request(shard, lane, method, *args)
        return request(shard, lane, method, *args)

    with monkeypatch.context() as patch:
        patch.setattr(store, "_request", twice)
        store.put(PRESENT, features(2)[PRESENT])
        store.remove(PRESENT[:3])
        store.update_knn()
        store.put(PRESENT[:9], features(3)[PRESENT[:9]])
    first = list(repeated)
    for message in first:  # and once more, when later puts have come
        store._get([request(*message)])
    store.update_knn()
    store.refresh(None, round=2)
    x, present = features(2), torch.ones(N, dtype=torch.bool)
    x[PRESENT[:9]] = features(3)[PRESENT[:9]]
    present[ABSENT] = False
    assert torch.equal(store.read("present", ALL), present)
    assert torch.equal(store.read("features", PRESENT), x[PRESENT])
    oracle(store, x, present)


def test_reports_of_updates_do_not_depend_on_the_store(
    store: GraphStore, expected: LocalStore
) -> None:
    reference = copy.deepcopy(expected)
    for seed, count in ((2, 100), (3, 3), (4, 0)):
        reports = []
        for each in (store, reference):
            each.put(PRESENT[:count], features(seed)[PRESENT[:count]])
            if count == 3:
                each.remove(PRESENT[50:52])
            reports.append(each.update_knn())
        one, other = (replace(r, seconds=0.0, distances=0) for r in reports)
        assert one == other
        assert (reports[0].distances > 0) == (count > 0)
