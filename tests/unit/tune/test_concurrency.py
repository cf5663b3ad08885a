"""How many runs fit side by side."""

from __future__ import annotations

import pytest
from labelmesh.cluster.resources import ResourceError
from labelmesh.trainers.config import load_config
from labelmesh.tune.concurrency import driver_needs, most_at_once

# two trainers and two shards of half a CPU each
SHARDED = load_config("dag-digits")
LOCAL = load_config("dag-digits", {"train.engine": "local", "resources.cpus_per_trainer": 1.0})


@pytest.mark.parametrize(("cpus", "most"), [(2.0, 1), (3.9, 1), (4.0, 2), (64.0, 8)])
def test_runs_are_counted_as_wholes(cpus: float, most: int) -> None:
    assert most_at_once(SHARDED, cpus=cpus, gpus=0.0, wanted=8) == most


def test_a_local_run_needs_its_one_process() -> None:
    assert most_at_once(LOCAL, cpus=3.0, gpus=0.0, wanted=8) == 3
    assert driver_needs(LOCAL) == {"CPU": 1.0}


def test_a_driver_takes_no_part_of_what_its_run_needs_but_asks_for_something() -> None:
    assert driver_needs(SHARDED) == {"node:__internal_head__": 0.001}
    free = load_config("dag-digits", {"train.engine": "local", "resources.cpus_per_trainer": 0.0})
    assert driver_needs(free) == {"CPU": 0.001}


def test_gpus_bound_the_number_too() -> None:
    on_gpu = {"resources.gpus_per_trainer": 0.5, "resources.gpus_per_shard": 0.5}
    assert most_at_once(load_config("dag-digits", on_gpu), cpus=64.0, gpus=5.0, wanted=8) == 2


def test_a_run_that_does_not_fit_alone_is_refused_with_numbers() -> None:
    with pytest.raises(ResourceError, match=r"needs 2 CPUs .* but the cluster has 1"):
        most_at_once(SHARDED, cpus=1.0, gpus=0.0, wanted=3)


def test_runs_that_ask_for_nothing_are_bounded_by_the_cores() -> None:
    free = load_config("dag-digits", {"train.engine": "local", "resources.cpus_per_trainer": 0.0})
    assert most_at_once(free, cpus=2.0, gpus=0.0, wanted=8) == 2
