"""Jobs with a fake of Ray's client: what is sent, what is told, and what is kept silent."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from labelmesh.cluster import cli, job_commands, jobs
from labelmesh.cluster.job_logs import follow_logs
from labelmesh.trainers.config import ConfigError


class FakeClient:
    """A cluster that runs every job as its script says: pieces of output, then a last state."""

    def __init__(self, state: str = "SUCCEEDED", exit_code: int | None = 0) -> None:
        self.state, self.code = state, exit_code
        self.sent: dict[str, Any] = {}
        self.stopped = False
        self.polls = 0
        self.connections = [["one\n", "two\n"]]

    def get_address(self) -> str:
        return "http://fake:8265"

    def submit_job(self, **request: Any) -> str:
        self.sent = request
        return request["submission_id"] or "raysubmit_1"

    def get_job_info(self, job_id: str) -> SimpleNamespace:
        if job_id == "unknown":
            raise RuntimeError("Request failed with status code 404: no such job")
        self.polls += 1
        now = self.state if self.polls > 2 else "RUNNING"
        code = self.code if now == self.state else None
        return SimpleNamespace(
            status=SimpleNamespace(value="STOPPED" if self.stopped else now),
            driver_exit_code=code,
            message="",
        )

    def get_job_logs(self, job_id: str) -> str:
        return "one\ntwo\n"

    def stop_job(self, job_id: str) -> bool:
        self.stopped = True
        return True

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        pieces = self.connections.pop(0)
        for piece in pieces:
            if piece == "cut off":
                raise RuntimeError("WebSocket connection closed unexpectedly")
            yield piece
        self.polls = 2

    def list_jobs(self) -> list[SimpleNamespace]:
        return []


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    fake = FakeClient()
    monkeypatch.setattr(jobs, "connect_jobs", lambda address=None: fake)
    monkeypatch.setattr(jobs, "_is_this_machine", lambda client: False)
    monkeypatch.setattr(jobs, "_POLL_S", 0.0)
    return fake


TRAIN = ["train", "dag-digits", "--set", "data.uri=s3://b/d", "--out", "s3://b/runs"]


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(arguments)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def test_the_source_goes_along_and_the_job_may_take_time_to_stop(client: FakeClient) -> None:
    job = jobs.submit(TRAIN, env={"KEY": "value"}, cpus=1.5)
    assert job.id == "raysubmit_1"
    assert client.sent["entrypoint"].startswith("python -m labelmesh train dag-digits --set ")
    env = client.sent["runtime_env"]
    assert env["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "300", "KEY": "value"}
    assert env["py_modules"][0].endswith("/labelmesh")
    assert client.sent["entrypoint_num_cpus"] == 1.5
    assert client.sent["entrypoint_num_gpus"] is None


def test_a_followed_job_prints_its_output_and_passes_its_code_on(
    client: FakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("submit", "--follow", "--", *TRAIN) == 0
    out, err = capsys.readouterr()
    assert out == "one\ntwo\n"
    assert err == "job raysubmit_1\njob raysubmit_1: SUCCEEDED\n"


@pytest.mark.parametrize(
    ("state", "code", "passed_on"),
    [
        ("FAILED", 2, 2),
        ("FAILED", 1, 1),
        ("FAILED", 137, 1),
        ("FAILED", None, 1),
        ("STOPPED", 0, 1),
    ],
)
def test_exit_codes(
    client: FakeClient,
    capsys: pytest.CaptureFixture[str],
    state: str,
    code: int | None,
    passed_on: int,
) -> None:
    client.state, client.code = state, code
    assert call("submit", "--follow", "--json", "--", *TRAIN) == passed_on
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["status"] == state
    assert "one\ntwo\n" in err


def test_variables_are_given_or_taken_from_here_and_never_shown(
    client: FakeClient, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_SECRET_KEY", "hunter2-hunter2")
    options = ["--env", "MY_SECRET_KEY", "--env", "B=x=y"]
    assert call("submit", *options, "--json", "--", *TRAIN) == 0
    sent = client.sent["runtime_env"]["env_vars"]
    assert (sent["MY_SECRET_KEY"], sent["B"]) == ("hunter2-hunter2", "x=y")
    assert "hunter2" not in client.sent["entrypoint"] + str(client.sent["metadata"])
    assert "hunter2" not in "".join(capsys.readouterr())
    assert call("submit", "--env", "NOT_SET_HERE", "--", *TRAIN) == 2
    assert "NOT_SET_HERE: not set in this environment" in capsys.readouterr().err
    with pytest.raises(ValueError, match="got no key"):
        job_commands.variables(["=secret"])


def test_stop_waits_for_the_end(client: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("stop", "raysubmit_1", "--json") == 0
    assert client.stopped
    assert json.loads(capsys.readouterr().out)["status"] == "STOPPED"


def test_a_job_that_is_not_known(client: FakeClient, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("logs", "unknown") == 2
    assert "knows no job 'unknown'" in capsys.readouterr().err


def test_waiting_has_a_limit(client: FakeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.0, 1.0, 99.0])
    monkeypatch.setattr(jobs, "time", SimpleNamespace(monotonic=times.__next__, sleep=lambda s: 0))
    client.polls = -100
    with pytest.raises(TimeoutError, match="is RUNNING after 5 s"):
        jobs.Job("raysubmit_1", client).wait(timeout_s=5.0)


def test_a_lost_connection_is_waited_out_but_not_for_ever(client: FakeClient) -> None:
    answers = client.get_job_info
    lost = iter([True, True, False])

    def unsteady(job_id: str) -> SimpleNamespace:
        if next(lost, True):
            raise ConnectionResetError("reset by peer")
        return answers(job_id)

    client.get_job_info = unsteady  # type: ignore[method-assign]
    job = jobs.Job("raysubmit_1", client)
    assert job.status() == "RUNNING"
    with pytest.raises(ConfigError, match=r"no Ray dashboard answers at http://fake:8265 \(reset"):
        job.status()


def test_output_goes_on_after_a_lost_connection(client: FakeClient) -> None:
    client.connections = [["one\ntw", "cut off"], ["one\n", "two\nthree\n"], ["one\ntwo\nthree\n"]]
    ended = iter([False, False, True])
    pieces = follow_logs(client, "job", ended.__next__, pause=lambda s: None)
    assert list(pieces) == ["one\ntw", "o\nthree\n"]


@pytest.mark.parametrize(
    ("given", "environ", "found"),
    [
        ("http://a:1/", {"RAY_ADDRESS": "b:6379"}, "http://a:1"),
        (None, {"RAY_ADDRESS": "b:6379", "RAY_API_SERVER_ADDRESS": "http://c"}, "http://c"),
        (None, {"RAY_ADDRESS": "b:6379"}, "b:6379"),
        (None, {}, "http://127.0.0.1:8265"),
    ],
)
def test_where_the_cluster_is_looked_for(
    given: str | None, environ: dict[str, str], found: str
) -> None:
    assert jobs.resolve_address(given, environ) == found


def test_nobody_there_is_one_sentence() -> None:
    with pytest.raises(ConfigError, match=r"no Ray dashboard answers at http://127.0.0.1:1 \("):
        jobs.connect_jobs("http://127.0.0.1:1")


def test_another_ray_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_server_version", lambda client: "2.48.0")
    with pytest.raises(ConfigError, match=r"runs Ray 2\.48\.0, this machine has 2\."):
        jobs._check_version(None, "http://fake:8265")


def test_nodes_are_told_with_what_is_in_use() -> None:
    raylet = {"state": "ALIVE", "nodeId": "n1", "resourcesTotal": {"CPU": 8.0, "memory": 2.0**31}}
    head = {"state": "ALIVE", "nodeId": "n2", "isHeadNode": True, "resourcesTotal": {}}
    dead = {"state": "DEAD", "nodeId": "n3"}
    replies: dict[str, Any] = {
        "/nodes?view=summary": {
            "summary": [
                {"hostname": "a", "ip": "10.0.0.1", "raylet": raylet},
                {"hostname": "b", "ip": "10.0.0.2", "raylet": head},
                {"raylet": dead},
            ]
        },
        "/api/cluster_status?format=0": {
            "clusterStatus": {"loadMetricsReport": {"usageByNode": {"n1": {"CPU": [3.0, 8.0]}}}}
        },
    }

    class Http:
        def _do_request(self, method: str, path: str) -> SimpleNamespace:
            return SimpleNamespace(json=lambda: {"data": replies[path]})

    first, second = jobs._nodes(Http())
    assert (first["host"], first["is_head"], first["cpus"]) == ("b", True, 0.0)
    assert (second["cpus"], second["cpus_used"], second["memory_gib"]) == (8.0, 3.0, 2.0)
