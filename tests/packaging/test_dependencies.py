"""Ranges in pyproject.toml, one pinned version of each in constraints.txt, and what uses them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def requirements(extras: list[str]) -> list[Requirement]:
    texts = [*PROJECT["dependencies"]]
    for extra in extras:
        texts += PROJECT["optional-dependencies"][extra]
    return [Requirement(text) for text in texts]


def test_every_requirement_is_pinned_inside_its_range() -> None:
    known = pins()
    for requirement in requirements(["cpu", "hf", "s3", "mlflow", "dev"]):
        pinned = known[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(pinned), f"{requirement} is pinned to {pinned}"


def test_pins_are_plain_versions_that_any_build_satisfies() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert not re.search(r"@|/|\+", text)
    assert pins()["torch"] == Version("2.13.0")
    assert "labelmesh" not in pins()


def test_only_one_faiss_is_asked_for_by_each_extra() -> None:
    for extra in ("cpu", "gpu"):
        names = [r.name for r in requirements([extra]) if r.name.startswith("faiss")]
        assert names == [f"faiss-{extra}"]


def test_extras_are_those_of_the_documentation() -> None:
    assert sorted(PROJECT["optional-dependencies"]) == ["cpu", "dev", "gpu", "hf", "mlflow", "s3"]
    assert PROJECT["requires-python"] == ">=3.11"


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    return subprocess.run(
        ["make", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**kept, **environment},
    )


def test_an_old_python_is_refused_with_a_sentence(tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && { echo Python 3.9.1; exit 0; }\nexit 1\n')
    old.chmod(0o755)
    done = make(f"PYTHON={old}", f"VENV={tmp_path / 'venv'}", "test")
    assert done.returncode != 0
    assert f"Labelmesh needs Python 3.11 or later, and {old} is Python 3.9.1" in done.stderr
    assert not (tmp_path / "venv").exists()


def test_a_finished_environment_is_not_installed_again(tmp_path: Path) -> None:
    (tmp_path / ".installed-cpu-hf-s3-dev").touch()
    done = make(f"VENV={tmp_path}", "env")
    assert (done.returncode, "pip" in done.stdout) == (0, False)


@pytest.mark.parametrize(("target", "program"), [("demo", "labelmesh"), ("test", "pytest")])
def test_both_commands_set_up_the_environment_first(
    target: str, program: str, tmp_path: Path
) -> None:
    lines = make("--dry-run", f"VENV={tmp_path}", f"PYTHON={sys.executable}", target).stdout
    torch, itself = lines.index("torch setuptools"), lines.index("--editable '.[cpu,hf,s3,dev]'")
    assert torch < itself < lines.index(f"{tmp_path}/bin/python -m {program}")
    assert lines.count("--constraint constraints.txt") == 2


def test_ci_checks_then_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text().splitlines()
    assert "set -euo pipefail" in lines
    assert [line for line in lines if line.startswith("make ")] == ["make check", "make test"]
