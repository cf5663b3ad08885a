"""Refinement over 1 to 4 shards, which are threads, against that of one process: bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import pytest
import torch
from labelmesh.graph_store.kernels.knn import knn_self_join
from labelmesh.graph_store.partition import Partition
from labelmesh.graph_store.recall import measure_recall
from labelmesh.graph_store.refine import (
    Refined,
    Rule,
    Start,
    refine,
    refine_graph,
    refine_to_target,
    refine_until,
)
from labelmesh.graph_store.sharded_refine import ShardExchange
from labelmesh.graph_store.sharded_view import PeerLostError, ShardGroup
from torch import Tensor

N, K = 303, 6


@pytest.fixture(scope="module")
def problem() -> dict[str, Tensor]:
    """Clusters on a coarse grid (ties), some nodes moved, some absent: whole shards of them."""
    generator = torch.Generator().manual_seed(0)
    rows = 3 * torch.randn(6, 5, generator=generator)[torch.arange(N) % 6]
    rows = (2 * (rows + torch.randn(N, 5, generator=generator))).round() / 2
    present = (torch.arange(N) >= 110) | (torch.arange(N) < 3)
    ids, _ = knn_self_join(rows, K)
    moved = torch.rand(N, generator=generator) < 0.3
    rows[moved] += torch.randn(N, 5, generator=generator)[moved]
    return {"rows": rows, "neighbor_ids": ids, "moved": moved, "present": present}


def on_shards(
    size: int, bounds: tuple[int, ...], call: Callable[[ShardGroup, Partition, slice], Refined]
) -> list[Refined]:
    rendezvous, partition = torch.distributed.HashStore(), Partition(bounds)

    def run(rank: int) -> Refined:
        group = ShardGroup(rank, size, rendezvous, timeout_s=60.0)
        try:
            return call(group, partition, slice(*partition.span(rank)))
        except Exception:
            group.abort()  # or the others would wait for this shard
            raise

    with ThreadPoolExecutor(size) as pool:
        parts = [pool.submit(run, rank) for rank in range(size)]
        wait(parts)
    errors = [part.exception() for part in parts]
    for error in errors:
        if error is not None and not isinstance(error, PeerLostError):
            raise error
    return [part.result() for part in parts]


def assert_same(parts: list[Refined], expected: Refined) -> None:
    assert torch.equal(torch.cat([part.neighbor_ids for part in parts]), expected.neighbor_ids)
    assert torch.equal(torch.cat([part.distances for part in parts]), expected.distances)
    for part in parts:
        assert part.num_rounds == expected.num_rounds
        assert part.num_candidates == expected.num_candidates
        assert part.recall == expected.recall
        assert part.needs_rebuild == expected.needs_rebuild


@pytest.mark.parametrize("bounds", [(0, N), (0, 150, N), (0, 20, 101, N), (0, 5, 200, 201, N)])
@pytest.mark.parametrize("start", ["old", "nothing"])
def test_shards_have_the_lists_of_one_process(
    bounds: tuple[int, ...], start: str, problem: dict[str, Tensor], monkeypatch: Any
) -> None:
    given = dict(problem)
    if start == "nothing":
        given["neighbor_ids"] = torch.full((N, 1), -1)
    rule = Rule(num_reverse=4, seed=3)
    expected = refine_graph(**given, k=K, rule=rule)
    # Small blocks: shards of different sizes make the same number of exchanges.
    monkeypatch.setattr("labelmesh.graph_store.refine_rounds._ROOM", 5000)

    def call(group: ShardGroup, partition: Partition, own: slice) -> Refined:
        part: dict[str, Any] = {name: column[own] for name, column in given.items()}
        exchange = ShardExchange(group, partition)
        graph = refine(exchange, Start(**part), K, rule)
        lists = (graph.neighbor_ids, graph.distances)
        recall = measure_recall(
            part["rows"], *lists, present=part["present"], exchange=exchange, sample_size=99
        )
        return replace(graph, recall=recall)

    whole = (given["rows"], expected.neighbor_ids, expected.distances)
    recall = measure_recall(*whole, present=given["present"], sample_size=99)
    expected = replace(expected, recall=recall)
    assert expected.num_rounds > 1
    assert_same(on_shards(len(bounds) - 1, bounds, call), expected)


@pytest.mark.parametrize("bounds", [(0, N), (0, 20, 101, N)])
@pytest.mark.parametrize("target", [0.5, 0.95])
def test_shards_measure_the_recall_of_one_process(
    bounds: tuple[int, ...], target: float, problem: dict[str, Tensor]
) -> None:
    options: Any = {"k": K, "recall_target": target, "sample_size": 120}
    expected = refine_to_target(**problem, **options)
    assert expected.recall is not None
    assert expected.recall.sample_size < 120  # absent nodes are not counted

    def call(group: ShardGroup, partition: Partition, own: slice) -> Refined:
        part: dict[str, Any] = {name: column[own] for name, column in problem.items()}
        return refine_until(ShardExchange(group, partition), Start(**part), K, Rule(), target, 120)

    assert_same(on_shards(len(bounds) - 1, bounds, call), expected)
