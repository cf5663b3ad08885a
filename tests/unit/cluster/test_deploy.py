"""What is shipped to set up clusters: valid, with tokens on, exposing nothing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import labelmesh
import pytest
import ray.autoscaler
import yaml
from ray.runtime_env import RuntimeEnv

DEPLOY = Path(labelmesh.__file__).parent / "cluster" / "deploy"
SCHEMA = Path(__file__).with_name("kuberay_schema.yaml")
MANIFESTS = ("kuberay-cluster.yaml", "kuberay-job.yaml")
RAY = "2.60.0"


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def cluster_spec(name: str) -> dict[str, Any]:
    spec: dict[str, Any] = documents(name)[0]["spec"]
    return spec.get("rayClusterSpec", spec)


def containers(part: Any) -> Iterator[dict[str, Any]]:
    """All containers below a part of a manifest."""
    if isinstance(part, dict):
        yield from part.get("containers", [])
        part = list(part.values())
    if isinstance(part, list):
        for each in part:
            yield from containers(each)


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_are_what_kuberay_takes(name: str) -> None:
    schema = yaml.safe_load(SCHEMA.read_text())
    for document in documents(name):
        jsonschema.validate(document, schema)


def test_the_schema_refuses_a_field_that_kuberay_does_not_know() -> None:
    schema = yaml.safe_load(SCHEMA.read_text())
    wrong = documents("kuberay-cluster.yaml")[0]
    wrong["spec"]["headGroupSpec"]["replica"] = 1
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, schema)


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_container_has_the_token_from_a_secret(name: str) -> None:
    found = list(containers(documents(name)))
    assert len(found) >= 2
    for env in [c["env"] for c in found] + [cluster_spec(name)["autoscalerOptions"]["env"]]:
        by_name = {entry["name"]: entry for entry in env}
        assert by_name["RAY_AUTH_MODE"]["value"] == "token"
        assert "secretKeyRef" in by_name["RAY_AUTH_TOKEN"]["valueFrom"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_nothing_is_exposed_and_the_groups_scale(name: str) -> None:
    spec = cluster_spec(name)
    assert spec["rayVersion"] == RAY
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["headGroupSpec"]["enableIngress"] is False
    (group,) = spec["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"


@pytest.mark.parametrize("name", MANIFESTS)
def test_every_mount_has_its_volume(name: str) -> None:
    spec = cluster_spec(name)
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        mounted = {m["name"] for c in pod["containers"] for m in c.get("volumeMounts", [])}
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}


def test_the_cluster_file_is_what_ray_up_takes() -> None:
    (config,) = documents("ray-up.yaml")
    schema = Path(ray.autoscaler.__file__).with_name("ray-schema.json")
    jsonschema.validate(config, json.loads(schema.read_text()))
    assert config["head_node_type"] in config["available_node_types"]
    starts = config["head_start_ray_commands"] + config["worker_start_ray_commands"]
    assert all("RAY_AUTH_MODE=token" in line for line in starts if "ray start" in line)
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][1]


def test_the_runtime_environment_sends_the_source_and_no_secret() -> None:
    (env,) = documents("runtime_env.yaml")
    assert env["py_modules"] == ["../labelmesh"]
    RuntimeEnv(env_vars=env["env_vars"], excludes=env["excludes"])
    assert set(env["env_vars"]) == {"RAY_JOB_STOP_WAIT_TIME_S"}


def test_images_are_short_names_of_the_ray_that_is_asked_for() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    assert f"ARG BASE=rayproject/ray:{RAY}-py311-gpu" in text
    named = [c["image"] for name in MANIFESTS for c in containers(documents(name))]
    # The part before the first slash is no host: it has no dot and no port.
    for image in [*named, "rayproject/ray"]:
        assert not re.match(r"[^/]*[.:][^/]*/", image)
    assert all(f":{RAY}" in image for image in named)
