"""What the cluster that this process has joined has, and what of it is free. Ray."""

from __future__ import annotations

from typing import Any

import ray
from ray._private.state import available_resources_per_node, state

from ..trainers.config import RunSpec
from ..trainers.placement import Placement
from .placement import Node, plan_run


def plan_now(spec: RunSpec) -> Placement:
    """Where a run goes on the joined cluster, as it is at this moment.

    Raises:
        ResourceError: The run would wait for ever.
    """
    total, free = living_nodes(), free_nodes()
    return plan_run(spec, total=total, free=free, maximum=most_resources())


def joined_nodes() -> list[dict[str, Any]]:
    """Nodes with what they lend and what of it is in use, as `jobs.cluster_status` tells them."""
    free = available_resources_per_node()
    nodes = []
    for node in ray.nodes():
        if not node["Alive"]:
            continue
        has, left = node["Resources"], free.get(node["NodeID"], node["Resources"])
        entry: dict[str, Any] = {
            "id": node["NodeID"],
            "host": node["NodeManagerHostname"],
            "ip": node["NodeManagerAddress"],
            "is_head": "node:__internal_head__" in has,
        }
        for kind in ("CPU", "GPU"):
            name = f"{kind.lower()}s"
            entry[name] = has.get(kind, 0.0)
            entry[f"{name}_used"] = has.get(kind, 0.0) - left.get(kind, 0.0)
        nodes.append({**entry, "memory_gib": has.get("memory", 0.0) / 2**30})
    return sorted(nodes, key=lambda node: (not node["is_head"], node["id"]))


def living_nodes() -> list[Node]:
    """The nodes that live and stay, with all that Ray may lend on them."""
    return _nodes({})


def free_nodes() -> list[Node]:
    """The nodes that live and stay, with what is free on them."""
    return _nodes(available_resources_per_node())


def leaving_nodes() -> frozenset[str]:
    """Ids of the nodes that Ray was told to drain: spot machines that are taken back."""
    return frozenset(state.get_draining_nodes())


def _nodes(free: dict[str, dict[str, float]]) -> list[Node]:
    leaving = leaving_nodes()
    return [
        Node(node["NodeID"], has.get("CPU", 0.0), has.get("GPU", 0.0))
        for node in ray.nodes()
        if node["Alive"] and node["NodeID"] not in leaving
        for has in (free.get(node["NodeID"], node["Resources"]),)
    ]


def most_resources() -> tuple[float, float] | None:
    """CPUs and GPUs that an autoscaler may bring the cluster to; None where there is none."""
    most = state.get_max_resources_from_cluster_config()
    return None if not most else (float(most.get("CPU", 0)), float(most.get("GPU", 0)))
