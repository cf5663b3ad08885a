"""Several nodes, each a real raylet on this machine: placement, and jobs over the dashboard.

One cluster serves all tests. Two runs are made on it: one as a job, packed on one node, and one
from a driver that joins, spread over two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from labelmesh.cluster import jobs
from labelmesh.cluster.api import Cluster, Run
from labelmesh.cluster.status import examine
from labelmesh.trainers.checkpoint import committed
from labelmesh.trainers.config import ConfigError
from labelmesh.trainers.run_dir import RunDir
from safetensors.torch import load_file

from .raylets import raylets

pytestmark = [pytest.mark.ray, pytest.mark.soak]

OPTIONS = {
    "train.threads_per_worker": 1,
    "train.epochs": 2,
    "train.warmup_steps": 4,
    "train.steps_per_epoch": 30,
    "train.baseline_steps": 0,
    "train.batch_size": 32,
    "train.labeled_per_batch": 8,
    "train.num_workers": 2,
    "graph.num_shards": 2,
    "graph.k": 6,
    "data.num_nodes": 120,
    "model.feature_dim": 16,
    "resources.cpus_per_trainer": 1.0,
    "resources.cpus_per_shard": 0.5,
}

# What a user would write on one of the cluster's machines; it also notes where the bundles lie.
DRIVER = """
import json, sys
import labelmesh as lm
from ray.util.placement_group import placement_group_table

address, out, options = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
seen = []

def note(event):
    if event["kind"] == "round" and not seen:
        for group in placement_group_table().values():
            if group["state"] == "CREATED":
                seen.extend(
                    [group["bundles"][i]["CPU"], node]
                    for i, node in group["bundles_to_node_id"].items()
                )

with lm.connect(address) as cluster:
    try:
        too_large = {**options, "resources.cpus_per_trainer": 3.5, "train.num_workers": 1}
        cluster.train("dag-digits", set=too_large, name="large", out=out)
    except ValueError as error:
        refusal = str(error)
    cluster.train("dag-digits", set=options, name="spread", out=out, on_event=note)
    nodes = cluster.status()["nodes"]
print(json.dumps({"bundles": seen, "refusal": refusal, "nodes": nodes}))
"""


@dataclass(frozen=True)
class Nodes:
    """A head that lends nothing and two nodes of three CPUs."""

    address: str
    dashboard: str
    digits: str
    out: Path

    @property
    def options(self) -> dict[str, object]:
        return {**OPTIONS, "data.uri": self.digits}

    def command(self, name: str) -> list[str]:
        """A run on one node."""
        words = ["train", "dag-digits", "--name", name, "--out", str(self.out)]
        for key, value in {**self.options, "resources.placement": "pack"}.items():
            words += ["--set", f"{key}={json.dumps(value)}"]
        return words


@pytest.fixture(scope="module")
def nodes(digits: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    with raylets(2, cpus=3, with_dashboard=True) as cluster:
        url = f"http://{cluster.webui_url}"
        yield Nodes(cluster.address, url, digits, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def spread(nodes: Nodes) -> dict[str, object]:
    """What the driver of a run over two nodes saw."""
    arguments = [nodes.address, str(nodes.out), json.dumps(nodes.options)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DRIVER, *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    seen: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return seen


@pytest.fixture(scope="module")
def packed(nodes: Nodes) -> tuple[jobs.Job, str]:
    """The same run as a job on one node, and what it printed."""
    with Cluster(nodes.dashboard) as cluster:
        job = cluster.submit(nodes.command("packed"), env={"LABELMESH_SECRET": "not to be seen"})
        printed = "".join(cluster.logs(job, follow=True))
    return job, printed


def test_every_shard_lies_beside_a_trainer(nodes: Nodes, spread: dict[str, object]) -> None:
    bundles = spread["bundles"]
    assert isinstance(bundles, list)
    shards = sorted(node for cpus, node in bundles if cpus == 0.5)
    trainers = sorted(node for cpus, node in bundles if cpus == 1.0)
    assert len(set(shards)) == 2
    assert shards == trainers
    (head,) = (n["id"] for n in jobs.cluster_status(nodes.dashboard)["nodes"] if n["is_head"])
    assert head not in shards


def test_a_process_that_fits_no_node_is_refused_with_their_numbers(
    spread: dict[str, object],
) -> None:
    refusal = str(spread["refusal"])
    assert "1 trainers of 3.5 CPUs and 0 GPUs each and 2 shards of 0.5 CPUs" in refusal
    assert "not into its 3 nodes one by one, which offer 3 CPUs and 0 GPUs, 3 CPUs" in refusal


def test_the_joined_cluster_tells_its_nodes(spread: dict[str, object]) -> None:
    found = spread["nodes"]
    assert isinstance(found, list)
    assert [(n["is_head"], n["cpus"]) for n in found] == [(True, 0.0), (False, 3.0), (False, 3.0)]


def test_a_job_is_followed_to_its_end(nodes: Nodes, packed: tuple[jobs.Job, str]) -> None:
    job, printed = packed
    assert job.status() == "SUCCEEDED"
    assert job.exit_code == 0
    assert "test accuracy" in printed
    assert printed == job.logs()
    (listed,) = (j for j in jobs.list_jobs(nodes.dashboard) if j["id"] == job.id)
    assert listed["command"].startswith("train dag-digits --name packed")
    written = [p for p in (nodes.out / "packed").rglob("*") if p.is_file()]
    assert not any(b"not to be seen" in p.read_bytes() for p in written)
    assert "not to be seen" not in printed


def test_a_run_over_two_nodes_is_that_on_one(
    nodes: Nodes, packed: tuple[jobs.Job, str], spread: dict[str, object]
) -> None:
    assert_same(nodes, "packed", "spread")


def assert_same(nodes: Nodes, one: str, other: str) -> None:
    a, b = (load_file(nodes.out / name / "model.safetensors") for name in (one, other))
    assert all(torch.equal(a[name], b[name]) for name in a)
    one_run, other_run = (Run(str(nodes.out / name)) for name in (one, other))
    assert one_run.labels().equals(other_run.labels())


def test_a_run_that_is_stopped_goes_on_as_if_undisturbed(
    nodes: Nodes, packed: tuple[jobs.Job, str]
) -> None:
    run = RunDir(str(nodes.out / "stopped"))
    with Cluster(nodes.dashboard) as cluster:
        job = cluster.submit(nodes.command("stopped"))
        deadline = time.monotonic() + 600
        while " steps" not in str(job.logs()) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert cluster.stop(job) == "STOPPED"
        assert job.exit_code == 1
        assert "stopped by SIGTERM: the run has paused at checkpoint epoch-" in str(job.logs())
        assert "Traceback" not in str(job.logs())
        found = examine(run, time.time())
        assert (found["state"], found["silent_s"]) == ("paused", None)
        assert found["reason"].startswith("stopped by SIGTERM: the run has paused at checkpoint")
        assert found["checkpoint"] == committed(run)[-1]
        assert found["advice"].startswith("go on with: labelmesh train dag-digits --set ")
        assert not run.exists("result.json")

        again = cluster.submit([*nodes.command("stopped"), "--resume"])
        assert again.wait(1200.0) == "SUCCEEDED"
    assert_same(nodes, "packed", "stopped")
    assert examine(run, time.time())["state"] == "finished"


def test_nobody_works_with_jobs_without_the_token(nodes: Nodes, tmp_path: Path) -> None:
    wrong = {"RAY_AUTH_TOKEN": "f" * 64}
    asked = [
        (["jobs"], {}),
        (["status", "--cluster"], wrong),
        (["submit", "--", "report", "x"], wrong),
        (["logs", "none"], {}),
        (["stop", "none"], wrong),
    ]
    known = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
    known |= {"HOME": str(tmp_path), "RAY_API_SERVER_ADDRESS": nodes.dashboard}
    begun = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "labelmesh", *words],
            env=known | token,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for words, token in asked
    ]
    for process, (words, token) in zip(begun, asked):
        out, err = process.communicate()
        what = "refuses the token" if token else "wants a token, and none was found"
        assert (process.returncode, out) == (2, ""), words
        assert err.startswith(f"error: the cluster at {nodes.dashboard} {what}: set RAY_AUTH_TOKEN")
        assert err.count("\n") == 1
    codes = {}
    for token in ("", "f" * 64, os.environ["RAY_AUTH_TOKEN"]):
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        request = urllib.request.Request(f"{nodes.dashboard}/api/jobs/", headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                codes[token] = reply.status
        except urllib.error.HTTPError as error:
            codes[token] = error.code
            error.close()
    assert list(codes.values()) == [401, 403, 200]


def test_bad_input_of_a_job_is_its_exit_code_and_stop_ends_it(nodes: Nodes) -> None:
    with Cluster(nodes.dashboard) as cluster:
        bad = cluster.submit(["report", str(nodes.out / "no")])
        slow = cluster.submit(["train", "dag-digits", "--name", "slow", "--out", str(nodes.out)])
        assert cluster.stop(slow.id) == "STOPPED"
        assert slow.exit_code == 1
        assert bad.wait(600.0) == "FAILED"
        assert bad.exit_code == 2
        with pytest.raises(ConfigError, match="knows no job 'raysubmit_none'"):
            cluster.stop("raysubmit_none")
