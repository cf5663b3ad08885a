"""Clusters of several nodes, each a real raylet on this machine."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest


@contextmanager
def raylets(num_nodes: int, *, cpus: int, with_dashboard: bool = False) -> Iterator[Any]:
    """A `ray.cluster_utils.Cluster`: a head that lends nothing, and nodes of `cpus` CPUs each."""
    import ray._common.utils
    import ray._private.utils
    from ray.cluster_utils import Cluster

    # Sockets lie under this folder, and their paths must stay below 108 characters.
    folder = tempfile.mkdtemp(prefix="ln-", dir="/tmp")
    dashboard = {
        "dashboard_host": "127.0.0.1",
        "dashboard_port": 0,
        "dashboard_agent_listen_port": None,
    }
    with pytest.MonkeyPatch.context() as patch:
        # The note by which jobs find their cluster among those of this machine lies with the nodes,
        # as `ray start --temp-dir` does it; in /tmp/ray every other Ray would join these nodes.
        for module, name in ((ray._private.utils, "write"), (ray._common.utils, "reset")):
            noted = partial(getattr(module, f"{name}_ray_address"), temp_dir=folder)
            patch.setattr(module, f"{name}_ray_address", noted)
        cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "temp_dir": folder,
                "include_dashboard": with_dashboard,
                **(dashboard if with_dashboard else {}),
            },
        )
        try:
            for _ in range(num_nodes):
                cluster.add_node(num_cpus=cpus, temp_dir=folder)
            yield cluster
        finally:
            cluster.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
