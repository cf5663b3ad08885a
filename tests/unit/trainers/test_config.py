"""Configurations are checked before anything starts, and errors name the remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from labelmesh.trainers.config import (
    ConfigError,
    load_config,
    parse_overrides,
    parse_spec,
    shipped_configs,
)
from labelmesh.trainers.prepare import load_config_text

BASE = {
    "name": "t",
    "data": {"uri": "data/x"},
    "method": {"name": "supervised"},
    "train": {"epochs": 1},
}


def changed(section: str, **values: object) -> dict[str, object]:
    return {**BASE, section: {**BASE.get(section, {}), **values}}  # type: ignore[dict-item]


@pytest.mark.parametrize("name", sorted(shipped_configs()))
def test_shipped_configuration_survives_its_resolved_file(name: str) -> None:
    spec = load_config(name)
    assert load_config_text(spec.to_toml()) == spec


def test_unknown_key_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'graph.kk'; did you mean 'graph.k'\?"):
        parse_spec(changed("graph", kk=3))


def test_unknown_section_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'grap"):
        parse_spec({**BASE, "grap": {"k": 3}})


def test_unknown_method_hyperparameter_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown key 'method.sigmaa'; did you mean"):
        parse_spec(changed("method", name="dag", sigmaa=1.0))


def test_unknown_method_lists_the_known() -> None:
    with pytest.raises(ConfigError, match=r"'dagg': no such method.*'dag'"):
        parse_spec(changed("method", name="dagg"))


def test_wrong_type_names_key_and_value() -> None:
    with pytest.raises(ConfigError, match=r"train.epochs = 'many': "):
        parse_spec(changed("train", epochs="many"))


def test_missing_required_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data.uri is missing"):
        parse_spec({**BASE, "data": {}})


def test_workers_must_divide_micro_batches() -> None:
    with pytest.raises(ConfigError, match=r"num_workers = 3 does not divide .* = 2"):
        parse_spec(changed("train", num_workers=3))


def test_batch_must_divide_into_micro_batches() -> None:
    with pytest.raises(ConfigError, match=r"batch_size = 129 is no multiple"):
        parse_spec(changed("train", batch_size=129))


@pytest.mark.parametrize(
    ("section", "values", "sentence"),
    [
        ("train", {"deepspeed": {"gradient_clipping": 1.0}}, "is decided by train.grad_clip"),
        ("train", {"step_epochs": [3]}, "used by train.schedule = 'step' alone"),
        ("train", {"schedule": "constant", "cosine_end": 3.0}, "'cosine' alone"),
        ("data", {"split_file": "x", "labels_per_class": 4}, "give one of them"),
        ("data", {"split_file": "x"}, "needs data.split_dataset"),
        ("data", {"split_dataset": "cifar10"}, "need data.split_file"),
    ],
)
def test_keys_that_would_be_ignored_are_refused(
    section: str, values: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        parse_spec(changed(section, **values))


def test_overrides_are_toml_values_or_strings() -> None:
    parsed = parse_overrides(["graph.k=32", "data.uri=s3://b/x", 'name="n"', "train.lr=1e-2"])
    assert parsed == {"graph.k": 32, "data.uri": "s3://b/x", "name": "n", "train.lr": 0.01}


def test_override_without_value_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"expected key=value"):
        parse_overrides(["graph.k"])


def test_file_and_overrides_make_a_spec(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        'name="a"\n[data]\nuri="u"\n[method]\nname="dag"\nhops=2\n[train]\nepochs=3\n'
        "[train.deepspeed]\nzero_optimization = {stage = 2}\n"
    )
    spec = load_config(path, {"graph.k": 7})
    assert spec.graph.k == 7
    assert spec.method.phases[-1].hops == 2
    assert spec.train.deepspeed == {"zero_optimization": {"stage": 2}}


def test_missing_file_suggests_a_shipped_name() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'dag-digits'"):
        load_config("dag-digit")


def test_broken_toml_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("name = ")
    with pytest.raises(ConfigError, match=r"not valid TOML"):
        load_config(path)
