"""The layout: five folders at the top, one import name, one wheel with everything in it."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import labelmesh
import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("cluster", "datasets", "graph_store", "trainers", "tune")
DATA_ENDINGS = {".toml", ".html", ".json", ".yaml"}


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def source_files() -> set[str]:
    """Everything that belongs into the wheel, as paths below the repository's root."""
    found = {"__init__.py", "__main__.py"}
    for part in PARTS:
        for path in (ROOT / part).rglob("*"):
            is_ours = path.suffix in {".py", *DATA_ENDINGS} or path.name == "Containerfile"
            if is_ours and "__pycache__" not in path.parts:
                found.add(path.relative_to(ROOT).as_posix())
    return found


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: building in place would leave files in the repository."""
    work = tmp_path_factory.mktemp("wheel")
    copy = work / "source"
    for part in PARTS:
        if (ROOT / part).is_dir():
            shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("__init__.py", "__main__.py", "pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, copy / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(work)]
    done = subprocess.run([*command, str(copy)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = work.glob("*.whl")
    return built


def test_packages_listed_are_the_folders_with_files() -> None:
    folders = {Path(name).parent for name in source_files()}
    # Templates are data of the package above them.
    packages = {
        f for f in folders if any((ROOT / f).glob("*.py")) or any((ROOT / f).glob("*.toml"))
    }
    expected = {".".join(["labelmesh", *folder.parts]) for folder in packages}
    listed = project()["tool"]["setuptools"]["packages"]
    assert sorted(listed) == sorted(expected)


def test_wheel_contains_every_module_and_data_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if not n.split("/")[0].endswith(".dist-info")}
    assert names == {f"labelmesh/{name}" for name in source_files()}


def test_wheel_is_for_every_platform_and_has_the_version(wheel: Path) -> None:
    assert wheel.name == f"labelmesh-{labelmesh.__version__}-py3-none-any.whl"


def test_installed_wheel_works_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
        "import labelmesh, labelmesh.cluster.cli as c; "
        "print(labelmesh.__file__); print(*c.shipped_configurations())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    place, configurations = done.stdout.splitlines()
    assert Path(place).is_relative_to(tmp_path)
    assert configurations.split() == sorted(
        p.stem for p in (ROOT / "trainers/configs").glob("*.toml")
    )


@pytest.mark.parametrize("part", PARTS)
def test_top_folders_are_no_packages_of_their_own(part: str) -> None:
    assert not (ROOT / part / "__init__.py").exists()


@pytest.mark.parametrize("name", ["datasets", "cluster", "tune"])
def test_other_peoples_packages_are_found_in_the_repository_root(name: str, tmp_path: Path) -> None:
    """Started in the repository's root, `import datasets` must give Hugging Face's."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("owner = 'somebody else'")
    code = f"import sys; sys.path.append({str(tmp_path)!r}); import {name}; print({name}.owner)"
    # -c puts the working directory first on the path, as a script in it would.
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.stdout.strip() == "somebody else", done.stderr


def test_version_is_the_same_everywhere() -> None:
    from importlib import metadata

    assert metadata.version("labelmesh") == labelmesh.__version__
    assert project()["tool"]["setuptools"]["dynamic"]["version"] == {
        "attr": "labelmesh.__version__"
    }


def test_public_names_resolve() -> None:
    assert set(labelmesh.__all__) <= set(dir(labelmesh))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        labelmesh.nonsense  # noqa: B018


@pytest.mark.parametrize("name", sorted(set(labelmesh.__all__) - {"__version__"}))
def test_public_name_is_there(name: str) -> None:
    assert getattr(labelmesh, name) is not None
