"""Ray metrics of a run, as Prometheus reads them from a node."""

from __future__ import annotations

import re
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.ray
EVENTS: list[dict[str, Any]] = [
    {"kind": "attempt", "number": 1, "workers": 2, "resumed_from": None},
    {"kind": "train", "epoch": 0, "step": 20, "loss": 9.0, "baseline": True},
    {"kind": "train", "epoch": 1, "step": 20, "loss": 0.75, "lr": 0.5, "samples_per_s": 900.0},
    {
        "kind": "round",
        "round": 3,
        "epoch": 3,
        "searched": 50,
        "recall": 1.0,
        "coverage": 0.5,
        "pseudo_accuracy": 0.875,
        "seconds_search": 2.5,
        "seconds_extract": 1.0,
        "seconds_solve": 0.25,
        "seconds_publish": 0.125,
        "seconds_train": 8.0,
    },
    {"kind": "eval", "split": "val", "epoch": 3, "accuracy": 0.625},
    {"kind": "checkpoint", "name": "epoch-0003", "seconds": 1.5},
    {"kind": "lost", "reason": "a worker died", "failures": 1},
    {"kind": "attempt", "number": 2, "workers": 1, "resumed_from": "epoch-0003"},
    {"kind": "queues", "waiting_puts": {0: 7}},
]
SAMPLE = re.compile(r"^(ray_labelmesh_\w+)\{(.*)\} (\S+)$", re.MULTILINE)


def scrape() -> dict[tuple[str, str], float]:
    """Values by name and the tag beside run and method, of all nodes."""
    import ray

    found = {}
    for node in ray.nodes():
        url = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        with urllib.request.urlopen(url, timeout=10) as reply:
            text = reply.read().decode()
        for name, tags, value in SAMPLE.findall(text):
            known = dict(re.findall(r'(\w+)="([^"]*)"', tags))
            if (known.get("run"), known.get("method")) == ("a run, no. 1", "dag"):
                extra = known.get("stage") or known.get("split") or known.get("shard") or ""
                found[name, extra] = float(value)
    return found


def test_prometheus_finds_every_number(ray_local: str) -> None:
    from labelmesh.trainers.gauges import Gauges, metric_names

    gauges = Gauges("a run, no. 1", "dag", num_nodes=200)
    for event in EVENTS:
        gauges.record(event)
    expected = {
        ("ray_labelmesh_loss", ""): 0.75,
        ("ray_labelmesh_step", ""): 20.0,
        ("ray_labelmesh_epoch", ""): 1.0,
        ("ray_labelmesh_samples_per_second", ""): 900.0,
        ("ray_labelmesh_learning_rate", ""): 0.5,
        ("ray_labelmesh_round", ""): 3.0,
        ("ray_labelmesh_searched_share", ""): 0.25,
        ("ray_labelmesh_recall", ""): 1.0,
        ("ray_labelmesh_coverage", ""): 0.5,
        ("ray_labelmesh_pseudo_accuracy", ""): 0.875,
        ("ray_labelmesh_round_seconds", "search"): 2.5,
        ("ray_labelmesh_round_seconds", "extract"): 1.0,
        ("ray_labelmesh_round_seconds", "solve"): 0.25,
        ("ray_labelmesh_round_seconds", "publish"): 0.125,
        ("ray_labelmesh_round_seconds", "train"): 8.0,
        ("ray_labelmesh_accuracy", "val"): 0.625,
        ("ray_labelmesh_checkpoint_seconds", ""): 1.5,
        ("ray_labelmesh_workers", ""): 1.0,
        ("ray_labelmesh_waiting_puts", "0"): 7.0,
        ("ray_labelmesh_rounds_total", ""): 1.0,
        ("ray_labelmesh_checkpoints_total", ""): 1.0,
        ("ray_labelmesh_restarts_total", ""): 1.0,
        ("ray_labelmesh_losses_total", ""): 1.0,
    }
    # Ray passes values on every ten seconds.
    deadline = time.monotonic() + 90
    with gauges.kept():
        while (found := scrape()) != expected and time.monotonic() < deadline:
            time.sleep(0.5)
    assert found == expected
    assert {name for name, _ in found} == metric_names()


def test_numbers_stay_while_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    from labelmesh.trainers import gauges as module

    # Ray drops a gauge that nobody has set for twenty seconds.
    told: list[tuple[str, float, dict[str, str]]] = []

    class Told:
        def __init__(self, name: str, *about: Any, **tags: Any) -> None:
            self.name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            told.append((self.name, value, tags))

    monkeypatch.setattr(module, "Gauge", Told)
    gauges = module.Gauges("first", "dag", num_nodes=200)
    with gauges.kept(every_s=0.01):
        gauges.record({"kind": "attempt", "number": 1, "workers": 2})
        gauges.record({"kind": "eval", "split": "val", "accuracy": 0.5})
        gauges.record({"kind": "eval", "split": "val", "accuracy": 0.625})
        deadline = time.monotonic() + 20
        while len(told) < 9 and time.monotonic() < deadline:
            time.sleep(0.01)
    run = {"run": "first", "method": "dag"}
    assert told[-4:].count(("labelmesh_accuracy", 0.625, run | {"split": "val"})) == 2
    assert told[-4:].count(("labelmesh_workers", 2.0, run)) == 2


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    import json

    from labelmesh.trainers.gauges import metric_names

    path = Path(__file__).resolve().parents[2] / "cluster" / "deploy" / "grafana.json"
    dashboard = json.loads(path.read_text())
    queries = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", [])]
    asked = {name for query in queries for name in re.findall(r"ray_\w+", query)}
    assert asked == metric_names()
    assert all(re.search(r'run=~"\$run"', query) for query in queries)
