"""Configurations come from strangers: they hold values, and neither code nor secrets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from labelmesh.cluster.api import Cluster
from labelmesh.trainers.config import (
    ConfigError,
    RunSpec,
    check_run_name,
    load_config,
    parse_overrides,
    parse_spec,
    with_absolute_uris,
)
from labelmesh.trainers.run_dir import environment

_SECRET = "pa55word"
_CONFIG = "dag-digits"


_BAD_NAMES = ["../up", "a/b", "/etc", "..", ".hidden", "~root", "*", "a?", "[a]", "zip::x"]
_BAD_NAMES += ["-option", "a\\b", "s3://x"]


@pytest.mark.parametrize("name", [*_BAD_NAMES, "", "a\nb", "x" * 129])
def test_name_of_a_run_cannot_leave_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a run's name becomes a folder"):
        load_config(_CONFIG, {"name": name})
    with pytest.raises(ConfigError, match="a run's name becomes a folder"):
        Cluster().train(_CONFIG, name=name, out=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["dag-digits", "demo seed=3", "trial_0003 (k=5,alpha=0.9)", "größe"]
)
def test_usual_names_are_taken(name: str) -> None:
    assert check_run_name(name) == name


@pytest.mark.parametrize(
    "key",
    [
        "data.uri",
        "model.weights",
        "output.uri",
        "data.split_dataset",
        "train.deepspeed.a.b",
        "name",
    ],
)
def test_credentials_in_any_value_are_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{_CONFIG}: {key} = 's3://...@bucket/x'") as caught:
        load_config(_CONFIG, {key: f"s3://AKIA:{_SECRET}@bucket/x"})
    assert _SECRET not in str(caught.value)


def test_value_of_the_wrong_type_is_not_shown_with_its_credentials() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(_CONFIG, {"graph.k": f"s3://AKIA:{_SECRET}@bucket/x"})
    assert _SECRET not in str(caught.value)


def test_spec_made_in_python_is_checked_too() -> None:
    body = load_config(_CONFIG).model_dump()
    spec = load_config(_CONFIG)
    body["output"]["uri"] = f"https://me:{_SECRET}@host/x"
    body["method"] = spec.method
    with pytest.raises(ValueError, match="has credentials in it") as caught:
        RunSpec(**body)
    assert _SECRET not in str(caught.value)


def test_place_of_runs_with_credentials_is_refused() -> None:
    with pytest.raises(ValueError, match=r"--out = 's3://\*\*\*@bucket'"):
        Cluster().train(_CONFIG, out=f"s3://AKIA:{_SECRET}@bucket")


def test_environment_is_not_filled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEAK", _SECRET)
    spec = with_absolute_uris(load_config(_CONFIG, {"data.uri": "memory://${LEAK}/$LEAK"}))
    assert spec.data.uri == "memory://${LEAK}/$LEAK"
    assert _SECRET not in spec.to_toml()


def test_environment_json_holds_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_OF_MINE", _SECRET)
    assert _SECRET not in json.dumps(environment())


@pytest.mark.parametrize(
    "key",
    ["method.__class__", "__class__.__init__", "data.__dict__.uri", "graph.k.__class__"],
)
def test_overrides_reach_keys_alone(key: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown key|is a value, not a section|train\."):
        load_config(_CONFIG, parse_overrides([f"{key}=1"]))


@pytest.mark.parametrize(
    "name", ["../evil", "os", "labelmesh.trainers.config", "dag.Dag", "/tmp/x"]
)
@pytest.mark.parametrize("key", ["method.name", "model.backbone"])
def test_names_of_code_are_looked_up_in_a_list(key: str, name: str) -> None:
    if key == "method.name":
        with pytest.raises(ConfigError, match="no such method"):
            load_config(_CONFIG, {key: name})
        return
    from labelmesh.trainers.backbones.build import build_backbone

    with pytest.raises(ValueError, match="is no backbone"):
        build_backbone(name, (3, 32, 32), 8)


def test_override_is_a_value_and_never_evaluated(tmp_path: Path) -> None:
    code = f"__import__('pathlib').Path('{tmp_path}/ran').touch()"
    assert parse_overrides([f"data.uri={code}"]) == {"data.uri": code}
    assert not (tmp_path / "ran").exists()


def test_file_that_is_no_configuration_is_refused_quickly(tmp_path: Path) -> None:
    deep, large = tmp_path / "deep.toml", tmp_path / "large.toml"
    deep.write_text("a = " + "[" * 20_000 + "]" * 20_000)
    large.write_text("#" * (2 << 20))
    with pytest.raises(ConfigError, match="nested too deep"):
        load_config(deep)
    with pytest.raises(ConfigError, match="has 2097152 bytes, a configuration at most 1048576"):
        load_config(large)


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["name", "data", "method", "train", "graph", "x"]), _VALUES),
    st.dictionaries(st.sampled_from(["uri", "k", "name", "epochs", "__init__"]), _VALUES),
)
def test_whatever_a_configuration_holds_the_answer_is_a_sentence(
    body: dict[str, Any], section: dict[str, Any]
) -> None:
    raw = {"data": section, "method": {"name": "dag", **section}, **body}
    with pytest.raises(ConfigError):
        parse_spec(raw)
