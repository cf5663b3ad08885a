"""What must hold on a CUDA device: the same neighbours, and a run that ends."""

from __future__ import annotations

from pathlib import Path

import labelmesh as lm
import pytest
import torch
from labelmesh.graph_store.kernels.knn import knn_self_join, prepare_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_are_those_of_the_cpu(metric: str) -> None:
    x = torch.randn(3000, 32, generator=torch.Generator().manual_seed(0))
    rows = prepare_rows(x, metric)
    ids, distances = knn_self_join(rows, 10)
    on_device = knn_self_join(rows.cuda(), 10)
    assert torch.equal(on_device[0].cpu(), ids)
    assert torch.equal(on_device[1].cpu(), distances)


@pytest.mark.parametrize("method", ["dag", "lpdssl", "fixmatch"])
def test_a_run_on_the_device_ends(method: str, tmp_path: Path) -> None:
    overrides = {
        "data.uri": str(tmp_path / "digits"),
        "train.engine": "local",
        "train.num_workers": 1,
        "train.epochs": 2,
        "train.warmup_steps": 20,
        "train.baseline_steps": 0,
    }
    run = lm.connect().train(f"{method}-digits", set=overrides, out=str(tmp_path))
    assert run.metrics["test/accuracy"] > 0.5
