"""Fixtures of the whole suite."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# The same examples every time, however busy the machine is. Others are tried by
# `--hypothesis-profile random`, and again by the seed that a failure then prints.
_UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.register_profile("random", _UNHURRIED)
settings.register_profile("repeatable", _UNHURRIED, derandomize=True, database=None)
settings.load_profile("repeatable")

# Ray reads these when it is imported, so they are set before any test module is. A test run makes
# clusters of its own with a token of its own; it never joins a cluster that happens to be there.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = "0123456789abcdef" * 2
os.environ.pop("RAY_ADDRESS", None)
# Ray's processes are as important as the tests beside them, which take all of the other core.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112


@functools.cache
def uses_ray(path: Path) -> bool:
    """Whether a file's tests, or some of them, start or use a Ray."""
    text = path.read_text()
    return "mark.ray" in text or "ray_local" in text


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files on Ray first: they take longest."""
    items.sort(key=lambda item: not uses_ray(item.path))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Divide the tests for pytest-xdist (`--dist loadscope`) by file, for their fixtures' sake.

    All files on Ray are one part: one process works them off, on one Ray.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return "ray" if uses_ray(config.rootpath / file) else file

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Layers that a test makes without a word about seeds begin with the same weights each time."""
    import torch

    torch.default_generator.manual_seed(0)


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digits, imported; tests copy them before they spoil them."""
    from labelmesh.datasets.importing import import_dataset

    uri = str(tmp_path_factory.mktemp("data") / "digits")
    import_dataset("digits", None, uri)
    return uri


@pytest.fixture(scope="session")
def ray_local() -> Iterator[str]:
    """A local Ray of four logical CPUs in a folder of its own; yields its namespace."""
    import ray

    namespace = "labelmesh-tests"
    # Ray puts sockets under this folder, and their paths must stay below 108 characters.
    folder = tempfile.mkdtemp(prefix="lm-", dir="/tmp")
    try:
        ray.init(
            address="local",
            num_cpus=4,
            namespace=namespace,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=256 * 2**20,
            _temp_dir=folder,
        )
        yield namespace
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
