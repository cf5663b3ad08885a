"""The refined graph against the exact one, and what must not be seen in it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.graph_store.kernels.knn import canonical_distances, knn_self_join
from labelmesh.graph_store.kernels.rows import prepare_rows
from labelmesh.graph_store.recall import choose_sample, measure_recall
from labelmesh.graph_store.refine import (
    Refined,
    Rule,
    build_approximate,
    refine_graph,
    refine_to_target,
)
from torch import Tensor

N, D, K = 1200, 12, 10


def clustered(num_rows: int = N, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(12, D, generator=generator)
    labels = torch.randint(0, 12, (num_rows,), generator=generator)
    return centres[labels] + torch.randn(num_rows, D, generator=generator)


def moved_by(rows: Tensor, moved: Tensor, length: float, seed: int = 1) -> Tensor:
    step = torch.randn(rows.shape, generator=torch.Generator().manual_seed(seed))
    step *= length / torch.linalg.vector_norm(step, dim=1, keepdim=True)
    return torch.where(moved[:, None], rows + step, rows)


def recall(rows: Tensor, graph: Refined) -> float:
    size = rows.shape[0]
    return measure_recall(rows, graph.neighbor_ids, graph.distances, sample_size=size).value


def assert_is_a_graph(rows: Tensor, graph: Refined) -> None:
    """Canonical distances, order by (distance, id), no self and nobody twice."""
    ids, distances = graph.neighbor_ids, graph.distances
    exists = ids >= 0
    queries = rows[:, None].expand(-1, ids.shape[1], -1).contiguous()
    expected = canonical_distances(queries, rows[ids.clamp(min=0)])
    assert torch.equal(distances, torch.where(exists, expected, torch.inf))
    assert (ids != torch.arange(rows.shape[0])[:, None]).all()
    in_order = (distances[:, 1:] > distances[:, :-1]) | (ids[:, 1:] > ids[:, :-1])
    assert (in_order | ~exists[:, 1:]).all()
    twins = ids.sort(1).values
    assert ((twins[:, 1:] != twins[:, :-1]) | (twins[:, 1:] < 0)).all()


@pytest.mark.parametrize("share", [0.01, 0.2, 1.0])
def test_refinement_follows_moves(share: float) -> None:
    rows = clustered()
    ids, distances = knn_self_join(rows, K)
    moved = torch.rand(N, generator=torch.Generator().manual_seed(2)) < share
    after = moved_by(rows, moved, 0.5 * float(distances[:, -1].median()))
    graph = refine_graph(after, ids, K, moved=moved)
    assert_is_a_graph(after, graph)
    stale = refine_graph(after, ids, K, moved=moved, rule=Rule(max_rounds=0))
    assert stale.num_rounds == 0
    assert recall(after, graph) > max(0.99, recall(after, stale))


def test_nodes_that_jump_to_another_cluster_find_their_neighbours() -> None:
    rows = clustered()
    ids, _ = knn_self_join(rows, K)
    moved = torch.arange(N) % 50 == 3
    after = rows.clone()
    after[moved] = clustered(seed=5)[moved]
    after[moved] += rows[:1] - after[moved][:1]
    graph = refine_graph(after, ids, K, moved=moved)
    assert_is_a_graph(after, graph)
    found, exact = graph.neighbor_ids[moved], knn_self_join(after, K)[0][moved]
    hits = (found[:, :, None] == exact[:, None]).any(1)
    assert hits.float().mean() > 0.97


def test_unmoved_rows_keep_an_exact_graph_without_looking_at_anything() -> None:
    rows = clustered()
    ids, distances = knn_self_join(rows, K)
    graph = refine_graph(rows, ids, K, moved=torch.zeros(N, dtype=torch.bool))
    assert torch.equal(graph.neighbor_ids, ids)
    assert torch.equal(graph.distances, distances)
    assert graph.num_candidates == N * K  # the old lists' own distances
    assert graph.num_rounds == 1


def test_graph_from_nothing() -> None:
    rows = clustered()
    graph = build_approximate(rows, K)
    assert_is_a_graph(rows, graph)
    assert recall(rows, graph) > 0.99
    other = build_approximate(rows, K, rule=Rule(seed=1))
    assert recall(rows, other) > 0.99


@settings(deadline=None, max_examples=25)
@given(
    num_rows=st.integers(1, 40),
    k=st.integers(1, 12),
    width=st.integers(1, 8),
    levels=st.sampled_from([1, 3, 100]),
    seed=st.integers(0, 1000),
)
def test_any_lists_become_a_graph(
    num_rows: int, k: int, width: int, levels: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, levels, (num_rows, 3), generator=generator).float()
    # Unordered, with repetitions, with the node itself and with gaps.
    old = torch.randint(-1, num_rows, (num_rows, width), generator=generator)
    moved = torch.rand(num_rows, generator=generator) < 0.5
    graph = refine_graph(rows, old, k, moved=moved, rule=Rule(seed=seed, num_reverse=3))
    assert_is_a_graph(rows, graph)
    start = refine_graph(rows, old, k, moved=moved, rule=Rule(seed=seed, max_rounds=0))
    assert (graph.distances <= start.distances).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_block_sizes_are_not_seen(
    threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = clustered()
    ids, _ = knn_self_join(rows, K)
    after = moved_by(rows, torch.arange(N) % 3 == 0, 1.0)
    expected = refine_graph(after, ids, K), build_approximate(after, K)
    monkeypatch.setattr("labelmesh.graph_store.refine_rounds._ROOM", 20_000)
    monkeypatch.setattr("labelmesh.graph_store.refine_rounds._TASK_ROWS", 17)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        got = refine_graph(after, ids, K), build_approximate(after, K)
    finally:
        torch.set_num_threads(before)
    for a, b in zip(got, expected):
        assert torch.equal(a.neighbor_ids, b.neighbor_ids)
        assert torch.equal(a.distances, b.distances)
        assert (a.num_rounds, a.num_candidates) == (b.num_rounds, b.num_candidates)


def test_absent_nodes_have_no_neighbours_and_are_nobodys() -> None:
    rows = clustered()
    ids, _ = knn_self_join(rows, K)
    present = torch.arange(N) % 4 != 1
    rows[~present] = 0
    unmoved = torch.zeros(N, dtype=torch.bool)
    after_deletion = refine_graph(rows, ids, K, moved=unmoved, present=present)
    from_nothing = build_approximate(rows, K, present=present)
    exact = knn_self_join(rows[present], K, torch.arange(N)[present])
    for graph in (after_deletion, from_nothing):
        assert (graph.neighbor_ids[~present] == -1).all()
        assert torch.isinf(graph.distances[~present]).all()
        kept = graph.neighbor_ids[present]
        assert present[kept].all()
        assert (graph.distances[present] <= exact[1][:, -1:]).float().mean() > 0.99


def test_added_nodes_are_found_from_pivots() -> None:
    rows = clustered()
    ids, _ = knn_self_join(rows[: N - 100], K)
    old = torch.full((N, K), -1)
    old[: N - 100] = ids
    graph = refine_graph(rows, old, K, moved=torch.arange(N) >= N - 100)
    assert recall(rows, graph) > 0.98


@pytest.mark.parametrize("metric", ["cosine", "inner_product"])
def test_other_metrics(metric: Any) -> None:
    rows = prepare_rows(clustered(), metric)
    exact_ids, exact = knn_self_join(rows, K, metric=metric)
    graph = refine_graph(rows, exact_ids[:, : K // 2], K, rule=Rule(metric=metric))
    assert (graph.distances <= exact[:, -1:]).double().mean() > 0.95


def test_target_is_reached_with_no_more_rounds_than_it_needs() -> None:
    rows = clustered()
    ids, _ = knn_self_join(rows, K)
    after = moved_by(rows, torch.ones(N, dtype=torch.bool), 1.0)
    stale = refine_graph(after, ids, K, rule=Rule(max_rounds=0))
    options: Any = {"sample_size": 600}
    low = refine_to_target(after, ids, K, recall_target=0.3, **options)
    high = refine_to_target(after, ids, K, recall_target=0.97, **options)
    assert 0.3 < recall(after, stale) < 0.97
    assert low.num_rounds == 0
    assert high.num_rounds > 0
    for graph, target in ((low, 0.3), (high, 0.97)):
        assert graph.recall is not None
        assert not graph.needs_rebuild
        assert target <= graph.recall.low <= graph.recall.value <= graph.recall.high
        assert graph.recall.low <= recall(after, graph) <= graph.recall.high
    assert_is_a_graph(after, high)


def test_recall_is_not_measured_on_pivots(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def draw(num_nodes: int, size: int, seed: int) -> Tensor:
        drawn.append(choose_sample(num_nodes, size, seed))
        return drawn[-1]

    for module in ("refine", "refine_starts"):
        monkeypatch.setattr(f"labelmesh.graph_store.{module}.choose_sample", draw)
    refine_to_target(clustered(), torch.full((N, 1), -1), K, recall_target=0.5, sample_size=300)
    sample, *pivots = drawn
    assert len(pivots) == 3
    for cells in pivots:
        # About 300 / 1200 of them, as by chance.
        assert torch.isin(cells, sample).float().mean() < 0.4


def test_target_out_of_reach_asks_for_a_rebuild() -> None:
    rows = torch.randn(N, 200, generator=torch.Generator().manual_seed(0))
    graph = refine_to_target(
        rows, torch.full((N, 1), -1), 5, recall_target=0.99, sample_size=N, rule=Rule(max_rounds=2)
    )
    assert graph.needs_rebuild
    assert graph.recall is not None
    assert graph.recall.value == recall(rows, graph) < 0.99


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k must be at least 1, got 0"),
        ({"neighbor_ids": torch.full((4, 2), 4)}, r"must lie in -1\.\.3, got 4\.\.4"),
        ({"neighbor_ids": torch.zeros(4, 0, dtype=torch.int64)}, "at least one column"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], message: str) -> None:
    given_: dict[str, Any] = {"neighbor_ids": torch.zeros(4, 2, dtype=torch.int64), "k": 2}
    with pytest.raises(ValueError, match=message):
        refine_graph(torch.zeros(4, 3), **(given_ | change))


@pytest.mark.parametrize("field", ["max_rounds", "min_changed", "num_reverse"])
def test_rule_checks_itself(field: str) -> None:
    values: dict[str, Any] = {"max_rounds": -1, "min_changed": 1.0, "num_reverse": 0}
    with pytest.raises(ValueError, match=f"{field} .*got {values[field]}"):
        Rule(**{field: values[field]})


def test_target_that_the_sample_cannot_show_is_an_error() -> None:
    rows, old = clustered(), torch.full((N, 1), -1)
    with pytest.raises(ValueError, match=r"100 sampled nodes can show .* at most 0\.9638"):
        refine_to_target(rows, old, K, recall_target=0.99, sample_size=100)
    with pytest.raises(ValueError, match=r"recall_target must lie in \(0, 1\], got 1\.5"):
        refine_to_target(rows, old, K, recall_target=1.5)
