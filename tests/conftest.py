"""Fixtures of the whole suite."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest

# Ray reads these when it is imported, so they are set before any test module is. A test run makes
# clusters of its own with a token of its own; it never joins a cluster that happens to be there.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = "0123456789abcdef" * 2
os.environ.pop("RAY_ADDRESS", None)
# Ray's processes are as important as the tests beside them, which take all of the other core.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the marks in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Divide the tests for pytest-xdist: what is on Ray, then file by file.

    One process has all tests on Ray, so that one Ray serves them; they come first because they
    take longest. A file's tests stay together, for the sake of its fixtures.
    """

    def on_ray(item: pytest.Item) -> bool:
        fixtures = getattr(item, "fixturenames", ())
        return item.get_closest_marker("ray") is not None or "ray_local" in fixtures

    if not config.pluginmanager.hasplugin("xdist"):
        return
    for item in items:
        item.add_marker(pytest.mark.xdist_group("ray" if on_ray(item) else item.path.stem))
    items.sort(key=lambda item: not on_ray(item))


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
