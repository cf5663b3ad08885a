"""What this machine offers to a run, and what stands in its way.

Every check is a function that returns a `Check` and never raises. Packages are asked for their
version before anything is imported, so that a broken one is reported instead of breaking the
report.
"""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "warn", "fail"]

_MIN_MEMORY_GIB = 4.0
_MIN_DISK_GIB = 10.0


@dataclass(frozen=True)
class Check:
    """One line of the report. `advice` is empty where nothing is to be done."""

    name: str
    status: Status
    found: str
    advice: str = ""


def examine(folder: Path | None = None) -> list[Check]:
    """Run all checks. `folder` is where runs will be written (the working directory if None)."""
    where = folder or Path.cwd()
    checks: list[Callable[[], Check]] = [
        check_python,
        check_torch,
        check_cuda,
        check_faiss,
        check_ray,
        check_deepspeed,
        check_cores,
        check_memory,
        lambda: check_disk(where),
    ]
    return [check() for check in checks]


def as_json(checks: list[Check]) -> dict[str, Any]:
    """The report as plain data: `ok` is False if any check failed; warnings do not count."""
    return {
        "ok": all(check.status != "fail" for check in checks),
        "checks": [asdict(check) for check in checks],
    }


def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Check:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if version < (3, 11):
        return Check("Python", "fail", found, "install Python 3.11 or later")
    return Check("Python", "ok", found)


def check_torch() -> Check:
    version = installed_version("torch")
    if version is None:
        return Check("torch", "fail", "not installed", "pip install torch")
    if _numbers(version) < (2, 11):
        return Check("torch", "fail", version, "install torch 2.11 or later")
    try:
        importlib.import_module("torch")
    except Exception as error:  # a broken installation raises whatever its loader raises
        return Check("torch", "fail", f"{version}: {_first_line(error)}", "install torch again")
    return Check("torch", "ok", version)


def check_cuda() -> Check:
    try:
        torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            advice = "runs use the CPU; for a GPU install its driver and a CUDA build of torch"
            return Check("CUDA", "warn", "no GPU that torch can use", advice)
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return Check("CUDA", "ok", f"{torch.version.cuda}: {', '.join(names)}")
    except Exception as error:  # drivers fail in many ways; all of them mean "no GPU"
        return Check("CUDA", "warn", _first_line(error), "runs use the CPU; check the GPU driver")


def check_faiss() -> Check:
    found = {name: installed_version(name) for name in ("faiss-cpu", "faiss-gpu")}
    present = [f"{name} {version}" for name, version in found.items() if version]
    if not present:
        advice = "exact search by torch is used; for faiss: pip install 'labelmesh[cpu]' or [gpu]"
        return Check("faiss", "warn", "not installed", advice)
    if len(present) > 1:
        advice = "both provide the package faiss: uninstall both, then install one"
        return Check("faiss", "fail", " and ".join(present), advice)
    try:
        # Asked before anything else: a GPU call without a GPU aborts the process.
        num_gpus = int(importlib.import_module("faiss").get_num_gpus())
    except Exception as error:  # as for torch
        return Check("faiss", "fail", f"{present[0]}: {_first_line(error)}", "install faiss again")
    return Check("faiss", "ok", f"{present[0]}, {num_gpus} GPUs")


def check_ray(environ: Mapping[str, str] = os.environ) -> Check:
    version = installed_version("ray")
    if version is None:
        return Check("Ray", "fail", "not installed", "pip install 'ray[default,train,tune]'")
    mode = environ.get("RAY_AUTH_MODE", "")
    address = environ.get("RAY_ADDRESS", "")
    found = f"{version}, auth mode {mode or 'not set'}, {address or 'local cluster'}"
    if _numbers(version) < (2, 60):
        return Check("Ray", "fail", found, "install Ray 2.60")
    if address and mode != "token":
        advice = "anyone who reaches this cluster can run code on it: set RAY_AUTH_MODE=token"
        return Check("Ray", "warn", found, advice)
    return Check("Ray", "ok", found)


def check_deepspeed() -> Check:
    version = installed_version("deepspeed")
    if version is None:
        advice = "pip install deepspeed, or train with --set train.engine=local"
        return Check("DeepSpeed", "warn", "not installed", advice)
    return Check("DeepSpeed", "ok", version)


def check_cores() -> Check:
    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if (num_cores or 1) < 2:
        return Check("cores", "warn", "1", "shards and trainers will take turns on one core")
    return Check("cores", "ok", str(num_cores))


def check_memory(meminfo: Path = Path("/proc/meminfo")) -> Check:
    """Memory that is free or can be freed; unknown where the system has no /proc."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines() if ":" in line)
        free, total = (int(lines[k].split()[0]) / 2**20 for k in ("MemAvailable", "MemTotal"))
    except (OSError, KeyError, ValueError):
        return Check("memory", "ok", "unknown on this system")
    found = f"{free:.1f} of {total:.1f} GiB free"
    if free < _MIN_MEMORY_GIB:
        return Check("memory", "warn", found, "close other programs, or use float16 features")
    return Check("memory", "ok", found)


def check_disk(folder: Path) -> Check:
    usage = shutil.disk_usage(folder)
    found = f"{usage.free / 2**30:.0f} of {usage.total / 2**30:.0f} GiB free at {folder}"
    if usage.free / 2**30 < _MIN_DISK_GIB:
        return Check("disk", "warn", found, "make room, or write runs elsewhere: --out")
    return Check("disk", "ok", found)


def installed_version(distribution: str) -> str | None:
    """Version of an installed distribution, None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("+")[0].split(".")[:2] if part.isdigit())


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
