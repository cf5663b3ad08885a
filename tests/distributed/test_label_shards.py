"""Labeling on shards gives what one process gives."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from labelmesh import knn_graph
from labelmesh.cluster import cli
from labelmesh.graph_store.labeling import METHODS, Propagation
from labelmesh.graph_store.labeling_round import Folds, LabelingRound
from labelmesh.graph_store.partition import Partition
from labelmesh.graph_store.sharded_view import ShardedGraphView, ShardGroup
from labelmesh.graph_store.view import NodeState, PseudoLabels

N, C = 151, 3


@pytest.fixture(scope="module")
def rows() -> torch.Tensor:
    """Three clusters, of which two touch and one stands apart."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0], [500.0, 0.0, 0.0]])
    return centres[torch.arange(N) % C] + torch.randn(N, 3, generator=generator)


def labels_of(rows: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(N) < 4 * C, torch.arange(N) % C, -1)


def on_shards(rows: torch.Tensor, size: int, task: LabelingRound) -> list[PseudoLabels]:
    """The round on `size` shards, which are threads that talk over gloo."""
    graph, labels = knn_graph(rows, 6).as_view(), labels_of(rows)
    rendezvous = torch.distributed.HashStore()

    def run(rank: int) -> PseudoLabels:
        partition = Partition.even(N, size)
        own = slice(*partition.span(rank))
        columns = (graph.neighbor_ids[own], graph.similarity[own], graph.distances[own])
        view: Any = ShardedGraphView(
            ShardGroup(rank, size, rendezvous), partition, *columns, "euclidean"
        )
        probs = torch.zeros(len(view.node_ids), C)
        return task(view, NodeState(rows[own], probs, labels[own], probs[:, 0], labels[own] > -9))

    with ThreadPoolExecutor(size) as pool:
        parts = [pool.submit(run, rank) for rank in range(size)]
        wait(parts)
    return [part.result() for part in parts]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_the_labels_of_one_process(rows: torch.Tensor, method: str) -> None:
    given = torch.arange(4 * C)
    folds = Folds(given, given % 2, 2) if method == "poisson" else None
    task = LabelingRound(Propagation(method, tol=1e-10), C, folds)
    probs = torch.zeros(N, C)
    state = NodeState(rows, probs, labels_of(rows), probs[:, 0], labels_of(rows) > -9)
    expected = task(knn_graph(rows, 6).as_view(), state)
    parts = on_shards(rows, 3, task)
    for name in ("found", "held_out"):
        got = torch.cat([part.extra[name] for part in parts])
        assert torch.equal(got, expected.extra[name]), name
    # Sums over shards differ in their last bits.
    confidence = torch.cat([part.extra["confidence"] for part in parts])
    torch.testing.assert_close(confidence, expected.extra["confidence"], rtol=0, atol=1e-6)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """The result of `labelmesh label`, which must end well."""
    with pytest.raises(SystemExit) as stopped:
        cli.main(["label", *arguments, "--json"])
    assert stopped.value.code == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.ray
def test_the_command_writes_the_same_file(
    ray_local: str,
    rows: torch.Tensor,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    x = rows.numpy().astype(np.float16)
    column = pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), 3)
    names = np.array(["ant", "bee", "cat", ""])[labels_of(rows).numpy()]
    pq.write_table(pa.table({"features": column, "label": names}), tmp_path / "x.parquet")
    tables, results = [], []
    for name, options in (("one", []), ("two", ["--shards", "2"])):
        out = str(tmp_path / f"{name}.parquet")
        results.append(call(capsys, str(tmp_path / "x.parquet"), "--out", out, *options))
        tables.append(pq.read_table(out))
    one, two = tables
    for column_name in ("row", "label", "source"):
        assert one[column_name].equals(two[column_name])
    np.testing.assert_allclose(
        one["confidence"].to_numpy(), two["confidence"].to_numpy(), rtol=0, atol=1e-6
    )
    assert results[0]["comparison"] == results[1]["comparison"]
    assert results[1]["where"] == "2 shards on Ray (as asked)"


@pytest.mark.ray
def test_the_command_refuses_rows_with_nan_on_shards(
    ray_local: str, rows: torch.Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    x = rows.numpy().copy()
    x[20] = np.nan
    np.savez(tmp_path / "x.npz", features=x, labels=labels_of(rows).numpy())
    with pytest.raises(SystemExit) as stopped:
        cli.main(["label", str(tmp_path / "x.npz"), "--out", str(tmp_path / "o"), "--shards", "2"])
    assert stopped.value.code == 2
    assert "rows 20 contain NaN" in capsys.readouterr().err
