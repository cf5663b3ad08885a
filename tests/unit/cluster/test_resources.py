"""Runs that do not fit are refused with numbers."""

from __future__ import annotations

import pytest
from labelmesh.cluster.resources import ResourceError, check
from labelmesh.trainers.config import load_config


def test_a_run_that_fits_is_let_through() -> None:
    check(load_config("dag-digits"), cpus=2.0, gpus=0.0)


def test_missing_gpus_are_counted_by_kind() -> None:
    spec = load_config("dag-cifar10", {"train.num_workers": 2, "graph.num_shards": 4})
    with pytest.raises(
        ResourceError,
        match=r"needs 3.2 GPUs \(2 trainers x 0.4, 4 shards x 0.6\) but the cluster has 2;",
    ):
        check(spec, cpus=64.0, gpus=2.0)


def test_fractions_that_fit_in_sum_but_not_one_by_one_are_refused() -> None:
    overrides = {"train.num_workers": 2, "graph.num_shards": 2}
    check(load_config("dag-cifar10", overrides), cpus=64.0, gpus=2.0)
    # Ray packs both shards on one GPU, and the second trainer finds no room.
    swapped = {"resources.gpus_per_shard": 0.4, "resources.gpus_per_trainer": 0.6}
    with pytest.raises(ResourceError, match="do not fit on 2 GPUs one by one"):
        check(load_config("dag-cifar10", {**overrides, **swapped}), cpus=64.0, gpus=2.0)


def test_methods_without_a_graph_need_no_shards() -> None:
    check(load_config("fixmatch-digits", {"graph.num_shards": 99}), cpus=1.0, gpus=0.0)
