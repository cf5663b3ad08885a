"""The checks of `labelmesh doctor`."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from labelmesh.cluster import doctor


def test_this_machine_can_run(tmp_path: Path) -> None:
    checks = doctor.examine(tmp_path)
    assert [check.name for check in checks] == [
        "Python",
        "torch",
        "CUDA",
        "faiss",
        "Ray",
        "DeepSpeed",
        "cores",
        "memory",
        "disk",
    ]
    assert doctor.as_json(checks)["ok"] is True
    assert all(check.advice for check in checks if check.status != "ok")
    assert not any(check.advice for check in checks if check.status == "ok")


def test_an_old_python_fails() -> None:
    assert doctor.check_python((3, 10)).status == "fail"


@pytest.mark.parametrize(("version", "status"), [("2.10.1", "fail"), ("2.13.0+cpu", "ok")])
def test_torch_must_be_2_11(monkeypatch: pytest.MonkeyPatch, version: str, status: str) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda name: version)
    assert doctor.check_torch().status == status


def test_a_broken_installation_is_reported_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise OSError("libcudart.so.13: cannot open shared object file\nmore")

    monkeypatch.setattr(doctor.importlib, "import_module", broken)
    torch, cuda, faiss = doctor.check_torch(), doctor.check_cuda(), doctor.check_faiss()
    assert (torch.status, cuda.status, faiss.status) == ("fail", "warn", "fail")
    assert torch.found.endswith("libcudart.so.13: cannot open shared object file")


def test_two_faiss_packages_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda name: "1.15.1")
    check = doctor.check_faiss()
    assert (check.status, check.found) == ("fail", "faiss-cpu 1.15.1 and faiss-gpu 1.15.1")


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda name: None)
    found = {
        check.name: check.status
        for check in (
            doctor.check_torch(),
            doctor.check_faiss(),
            doctor.check_ray({}),
            doctor.check_deepspeed(),
        )
    }
    assert found == {"torch": "fail", "faiss": "warn", "Ray": "fail", "DeepSpeed": "warn"}


@pytest.mark.parametrize(
    ("environ", "status"),
    [
        ({}, "ok"),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, "warn"),
        ({"RAY_ADDRESS": "10.0.0.1:6379", "RAY_AUTH_MODE": "token"}, "ok"),
    ],
)
def test_a_cluster_without_tokens_is_a_warning(environ: dict[str, str], status: str) -> None:
    assert doctor.check_ray(environ).status == status


@pytest.mark.parametrize(
    ("available_kib", "status"), [(8 * 2**20, "ok"), (2 * 2**20, "warn"), (None, "ok")]
)
def test_memory(tmp_path: Path, available_kib: int | None, status: str) -> None:
    meminfo = tmp_path / "meminfo"
    if available_kib is not None:
        meminfo.write_text(f"MemTotal: {16 * 2**20} kB\nMemAvailable: {available_kib} kB\n")
    assert doctor.check_memory(meminfo).status == status


def test_a_full_disk_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = SimpleNamespace(total=100 * 2**30, free=3 * 2**30)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage)
    check = doctor.check_disk(tmp_path)
    assert (check.status, check.found) == ("warn", f"3 of 100 GiB free at {tmp_path}")
    assert sys.version_info >= (3, 11)
