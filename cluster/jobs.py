"""Jobs on a Ray cluster, over the HTTP interface of its head.

The cluster is found as Ray's own tools find it: an address, else RAY_API_SERVER_ADDRESS, else
RAY_ADDRESS, else http://127.0.0.1:8265; an address that is given wins over the environment. Token
authentication stays on: the token is read where Ray reads it (RAY_AUTH_TOKEN,
RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token).

Variables that go with a job (`env`) reach the driver and all workers. They are written into no log
and no run; but Ray keeps them with the job, and whoever has the cluster's token can read them.
"""

from __future__ import annotations

import logging
import os
import shlex
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from .. import __version__
from ..datasets.masking import refuse_secrets
from ..trainers.config import ConfigError
from .job_logs import follow_logs
from .shipping import plan_shipment, ship_files, ship_package

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
STOP_WAIT_S = 300
"""How long a run that is stopped may take to write a checkpoint before it is killed."""

ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
_POLL_S = 1.0
_TRIES = 60
_CONNECT_S = 10.0
# They tell every upload and every closed connection.
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
)
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


class Job:
    """A command that runs, or ran, on a cluster."""

    def __init__(self, job_id: str, client: Any) -> None:
        self.id = job_id
        self._client = client

    def status(self) -> str:
        """ "PENDING", "RUNNING", "SUCCEEDED", "FAILED" or "STOPPED"."""
        return str(self._details().status.value)

    def wait(self, timeout_s: float | None = None) -> str:
        """Wait until it has ended, and say how.

        Raises:
            TimeoutError: It goes on after `timeout_s`.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while (status := self.status()) not in ENDED:
            if until is not None and time.monotonic() > until:
                raise TimeoutError(f"job {self.id} is {status} after {timeout_s:g} s")
            time.sleep(_POLL_S)
        return status

    @property
    def exit_code(self) -> int | None:
        """The command's exit code; 1 where it was stopped or never started, None while it runs."""
        details = self._details()
        if details.status.value not in ENDED:
            return None
        if details.status.value == "SUCCEEDED":
            return 0
        return details.driver_exit_code or 1

    @property
    def message(self) -> str:
        """What Ray says about the job's state."""
        return str(self._details().message or "")

    def logs(self, follow: bool = False) -> str | Iterator[str]:
        """What the command printed: so far; or, followed, piece by piece until it has ended."""
        if follow:
            return follow_logs(self._client, self.id, lambda: self.status() in ENDED)
        return str(self._client.get_job_logs(self.id))

    def stop(self, wait: bool = True) -> str:
        """End the command: SIGTERM, upon which a run writes a checkpoint; killed if that takes more
        than `STOP_WAIT_S`. Returns the state; nothing happens to a job that has ended."""
        self._client.stop_job(self.id)
        return self.wait() if wait else self.status()

    def _details(self) -> Any:
        """What the cluster knows of the job. Jobs go on for days: lost connections are waited out.

        Raises:
            ConfigError: Nobody answers any more.
        """
        for _ in range(_TRIES):
            try:
                return self._client.get_job_info(self.id)
            except OSError as error:
                lost = error
                time.sleep(_POLL_S)
        raise ConfigError(_nobody(self._client.get_address(), lost))


def submit(
    args: Sequence[str],
    *,
    address: str | None = None,
    env: Mapping[str, str] | None = None,
    job_id: str | None = None,
    cpus: float = 0,
    gpus: float = 0,
    memory: int = 0,
) -> Job:
    """Run a labelmesh command on a cluster, with this machine's version of the package.

    Args:
        args: As after `labelmesh`: `["train", "dag-digits", "--out", "s3://bucket/runs"]`.
        address: Of the cluster's dashboard, or the cluster.
        env: Variables for the driver and the workers.
        job_id: Default: one that Ray makes up.
        cpus, gpus, memory: What the driver itself reserves (memory in bytes). With any of them it
            may run on any node, without on the head.

    Raises:
        ConfigError: No cluster there, a wrong token, another Ray; or a command that cannot work.
    """
    refuse_secrets(list(args), "the job's command")
    client = connect_jobs(address)
    is_here = _is_this_machine(client)
    shipment = plan_shipment(args, is_here=is_here)
    python = shlex.quote(sys.executable) if is_here else "python"
    with tempfile.TemporaryDirectory(prefix="labelmesh-") as folder:
        runtime_env: dict[str, Any] = {
            "py_modules": [str(ship_package(Path(folder)))],
            "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **(env or {})},
        }
        if shipment.files:
            runtime_env["working_dir"] = str(ship_files(shipment.files, Path(folder)))
        with _explained(client.get_address()):
            submitted = client.submit_job(
                entrypoint=f"{python} -m labelmesh {shlex.join(shipment.args)}",
                submission_id=job_id,
                runtime_env=runtime_env,
                metadata={"labelmesh": __version__, "command": shlex.join(args)[:500]},
                entrypoint_num_cpus=cpus or None,
                entrypoint_num_gpus=gpus or None,
                entrypoint_memory=memory or None,
            )
    return Job(submitted, client)


def find_job(job_id: str, address: str | None = None) -> Job:
    """A job that was submitted before.

    Raises:
        ConfigError: The cluster knows no such job.
    """
    client = connect_jobs(address)
    job = Job(job_id, client)
    try:
        job.status()
    except RuntimeError as error:
        raise ConfigError(
            f"{client.get_address()} knows no job {job_id!r}; `labelmesh jobs` lists them"
        ) from error
    return job


def list_jobs(address: str | None = None) -> list[dict[str, Any]]:
    """All submitted jobs that the cluster remembers, the latest first."""
    return _jobs(connect_jobs(address))


def cluster_status(address: str | None = None) -> dict[str, Any]:
    """Nodes with what they lend and what of it is in use, and the jobs.

    `{"address", "ray", "nodes": [{"id", "host", "ip", "is_head", "cpus", "cpus_used", "gpus",
    "gpus_used", "memory_gib"}], "jobs": [...]}`, as plain data.
    """
    client = connect_jobs(address)
    return {
        "address": client.get_address(),
        "ray": _server_version(client),
        "nodes": _nodes(client),
        "jobs": _jobs(client),
    }


def joined_status() -> dict[str, Any]:
    """As `cluster_status`, of the cluster that this process has joined, without its dashboard:
    that of a Ray which was started for this process runs none, and so no jobs."""
    import ray

    from .nodes import joined_nodes

    context = ray.get_runtime_context()
    address = context.gcs_address
    return {"address": address, "ray": ray.__version__, "nodes": joined_nodes(), "jobs": []}


def resolve_address(address: str | None, environ: Mapping[str, str] = os.environ) -> str:
    """Where the cluster is looked for."""
    found = address or next((environ[v] for v in _ADDRESS_VARIABLES if environ.get(v)), None)
    return (found or DEFAULT_ADDRESS).rstrip("/")


def connect_jobs(address: str | None = None) -> Any:
    """Ray's client of a cluster's jobs.

    Raises:
        ConfigError: One sentence that says what is missing: dashboard, token, version.
    """
    # Ray's default from the next version on; an older environment must not turn it off.
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    where = resolve_address(address)
    if where.startswith(("http://", "https://")):
        _knock(where)
    from ray.job_submission import JobSubmissionClient

    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    with _only_address(where), _explained(where):
        client = JobSubmissionClient(where)
    _check_version(client, where)
    return client


def _knock(url: str) -> None:
    """Fail in seconds where nobody listens; Ray's client would wait for minutes."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_S).close()
    except OSError as error:
        raise ConfigError(_nobody(url, error)) from None


def _nobody(where: str, error: BaseException) -> str:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return (
        f"no Ray dashboard answers at {where} ({reason}); give --address or RAY_ADDRESS, start a "
        "cluster with `ray start --head`, or forward the port of a distant one: "
        "ssh -L 8265:127.0.0.1:8265 HEAD"
    )


@contextmanager
def _only_address(where: str) -> Iterator[None]:
    """Ray lets the environment win over the argument; here it is the other way round."""
    kept = {name: os.environ.pop(name, None) for name in _ADDRESS_VARIABLES}
    os.environ[_ADDRESS_VARIABLES[0]] = where
    try:
        yield
    finally:
        for name, value in kept.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Ray's errors as sentences for users."""
    from ray.exceptions import AuthenticationError

    try:
        yield
    except AuthenticationError as error:
        is_wrong = "failed" in str(error).split(":")[0]
        what = "refuses the token" if is_wrong else "wants a token, and none was found"
        raise ConfigError(
            f"the cluster at {where} {what}: set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, or write "
            "it into ~/.ray/auth_token, as on the cluster's head"
        ) from None
    except ConnectionError as error:
        raise ConfigError(_nobody(where, error)) from None
    except RuntimeError as error:
        raise ConfigError(f"the cluster at {where} answers: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def _server_version(client: Any) -> str:
    version: str = client._do_request("GET", "/api/version").json()["ray_version"]
    return version


def _check_version(client: Any, where: str) -> None:
    import ray

    there = _server_version(client)
    if there.split(".")[:2] != ray.__version__.split(".")[:2]:
        raise ConfigError(
            f"the cluster at {where} runs Ray {there}, this machine has {ray.__version__}; "
            "Labelmesh needs the same version on both sides"
        )


def _is_this_machine(client: Any) -> bool:
    return {node["host"] for node in _nodes(client)} == {socket.gethostname()}


def _nodes(client: Any) -> list[dict[str, Any]]:
    summary = client._do_request("GET", "/nodes?view=summary").json()["data"]["summary"]
    status = client._do_request("GET", "/api/cluster_status?format=0").json()["data"]
    report = (status.get("clusterStatus") or {}).get("loadMetricsReport") or {}
    in_use = report.get("usageByNode") or {}
    nodes = []
    for entry in summary:
        raylet = entry.get("raylet") or {}
        if raylet.get("state") != "ALIVE":
            continue
        has, used = raylet.get("resourcesTotal", {}), in_use.get(raylet["nodeId"], {})
        nodes.append(
            {
                "id": raylet["nodeId"],
                "host": entry.get("hostname") or raylet.get("nodeManagerHostname"),
                "ip": entry.get("ip") or raylet.get("nodeManagerAddress"),
                "is_head": bool(raylet.get("isHeadNode")),
                "cpus": has.get("CPU", 0.0),
                "cpus_used": used.get("CPU", [0.0])[0],
                "gpus": has.get("GPU", 0.0),
                "gpus_used": used.get("GPU", [0.0])[0],
                "memory_gib": has.get("memory", 0.0) / 2**30,
            }
        )
    return sorted(nodes, key=lambda node: (not node["is_head"], node["id"]))


def _jobs(client: Any) -> list[dict[str, Any]]:
    found = [job for job in client.list_jobs() if job.submission_id]
    found.sort(key=lambda job: job.start_time or 0, reverse=True)
    return [
        {
            "id": job.submission_id,
            "status": job.status.value,
            "command": (job.metadata or {}).get("command") or job.entrypoint,
            "started": None if job.start_time is None else job.start_time / 1000,
            "seconds": _seconds(job),
        }
        for job in found
    ]


def _seconds(job: Any) -> float | None:
    if job.start_time is None:
        return None
    end = job.end_time / 1000 if job.end_time else time.time()
    return float(end - job.start_time / 1000)
