"""How many runs of a sweep fit on a cluster side by side. No Ray.

A run's processes are started one after another: two runs that each hold half of what they need
would wait for each other for ever. So no more are started than fit as wholes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..cluster.resources import ResourceError, num_trainers
from ..cluster.resources import check as check_resources
from ..trainers.config import RunSpec

# Ray grants no process that asks for nothing, and what asks for a crumb of a CPU keeps a whole one
# from others where shares add up to whole CPUs. Ray's first machine lends one of these.
_HEAD = "node:__internal_head__"
_CRUMB = 0.001


def driver_needs(spec: RunSpec) -> dict[str, float]:
    """What the process asks of Ray that drives one run; it trains by itself if engine = "local".

    Where trainers and shards have processes of their own, their driver goes to the machine that
    the cluster cannot lose, and takes no CPU.
    """
    if spec.train.engine != "local":
        return {_HEAD: _CRUMB}
    needs = {"CPU": spec.resources.cpus_per_trainer, "GPU": spec.resources.gpus_per_trainer}
    return {name: count for name, count in needs.items() if count} or {"CPU": _CRUMB}


def most_at_once(spec: RunSpec, *, cpus: float, gpus: float, wanted: int) -> int:
    """The largest number of copies of a run, up to `wanted`, that the cluster holds.

    Raises:
        ResourceError: It does not hold one.
    """
    check_resources(_copies(spec, 1), cpus=cpus, gpus=gpus)
    asks_nothing = sum(_demand(spec).values()) == 0
    most = min(wanted, max(1, math.floor(cpus))) if asks_nothing else wanted
    for count in range(2, most + 1):
        try:
            check_resources(_copies(spec, count), cpus=cpus, gpus=gpus)
        except ResourceError:
            return count - 1
    return most


def _demand(spec: RunSpec) -> Mapping[str, float]:
    res = spec.resources
    shards = {} if _keeps_no_shards(spec) else {"c": res.cpus_per_shard, "g": res.gpus_per_shard}
    return {"trainer": res.cpus_per_trainer, "gpu": res.gpus_per_trainer, **shards}


def _keeps_no_shards(spec: RunSpec) -> bool:
    return spec.train.engine == "local" or not spec.method.uses_graph


def _copies(spec: RunSpec, count: int) -> RunSpec:
    """A run that needs as much as `count` of `spec`."""
    resources = spec.resources
    workers = num_trainers(spec)[0] * count
    if spec.train.engine == "local":
        resources = resources.model_copy(update={"cpus_per_shard": 0.0, "gpus_per_shard": 0.0})
        workers = count
    # as many micro-batches as workers, so that no fewer workers would do
    return spec.model_copy(
        update={
            "train": spec.train.model_copy(
                update={"num_workers": workers, "micro_batches": workers}
            ),
            "graph": spec.graph.model_copy(update={"num_shards": spec.graph.num_shards * count}),
            "resources": resources,
        }
    )
